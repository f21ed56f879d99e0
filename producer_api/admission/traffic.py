"""The model and adapter that an admitted request goes to, and the copies of it, by the name that it asks for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from producer_api.admission.idempotency import Identity
from producer_api.admission.model_catalog import MISS_LIFE_S, ModelCatalog
from producer_api.auth.principal import Principal
from shared.adapters.adapter import Adapter
from shared.protocol import Infer, Request, SequenceStep
from shared.repository.traffic.rules import Shadow, Split
from shared.token_log.interface import RequestRecord


@dataclass(frozen=True)
class Direction:
    """The rules for one name, applied to the requests of one caller.

    Attributes:
        closed: models whose queues are paused or draining.
        adapters: registered LoRA adapters by name.
    """

    principal: Principal
    split: Split | None = None
    shadow: Shadow | None = None
    closed: Collection[str] = ()
    adapters: Mapping[str, Adapter] = field(default_factory=dict)

    def complete(self, draft: Request, timeout_s: float | None, identity: Identity) -> Request:
        """Return `draft` with its identity, for the model and version that serve it. Raises as `apply` does."""
        return self.apply(identity.complete(draft, timeout_s))

    def apply(self, request: Request) -> Request:
        """Return the request for the model and version that serve it. It keeps a version that it asks for.

        The same request always gets the same ones, as long as the rules and the closed queues are the same. Raises
        PermissionDenied if the caller may not use the model.
        """
        if self.split is None:
            return adapted(request, self.adapters)
        value = self._value(request)
        branch = self.split.choose(value)
        if branch.model in self.closed and sequence_of(request) is None:  # the steps of a sequence share state
            branch = self.split.instead(value, self._open_models()) or branch
        self.principal.check_model(branch.model)
        return adapted(placed(request, branch.model, branch.version), self.adapters)

    def _open_models(self) -> set[str]:
        """Return the models of the split whose queues are open, and that the caller may use."""
        assert self.split is not None
        models = {branch.model for branch in self.split.branches}
        return {model for model in models if model not in self.closed and self.principal.may_use(model)}

    def _value(self, request: Request) -> str:
        """Return what decides on the branch; a caller without it gets a branch for each request or sequence."""
        assert self.split is not None
        match self.split.by:
            case "request":
                return _unit(request)
            case "route_key":
                return self.principal.client.route_key or _unit(request)
            case "tenant":
                return request.tenant
            case "user":
                return request.user or _unit(request)
            case "api_key":
                return self.principal.key_id or _unit(request)


def _unit(request: Request) -> str:
    """Return the id of a request, or of the sequence that it belongs to, whose steps share state."""
    if (sequence := sequence_of(request)) is not None:
        return msgspec.json.encode((request.tenant, sequence.id)).decode()
    return request.id


async def direction_for(catalog: ModelCatalog, name: str, principal: Principal) -> Direction:
    """Return the rules for a name. Raises Unavailable."""
    snapshot = await catalog.snapshot()
    if name not in snapshot.known:  # an adapter may have been registered a moment ago, by another process
        snapshot = await catalog.snapshot(MISS_LIFE_S)
    traffic = snapshot.traffic
    return Direction(
        principal, traffic.splits.get(name), traffic.shadows.get(name), snapshot.closed, snapshot.adapters
    )


async def direct(
    catalog: ModelCatalog, drafts: Sequence[Request], *, job_id: str, principal: Principal
) -> list[Request]:
    """Return drafts that belong together for the model that their name leads to.

    Args:
        job_id: the id of the first; the same id always leads to the same model.

    Raises PermissionDenied, Unavailable.
    """
    direction = await direction_for(catalog, drafts[0].model, principal)
    first = direction.apply(msgspec.structs.replace(drafts[0], id=job_id))
    return [alike(draft, first) for draft in drafts]


def placed(request: Request, model: str, version: str) -> Request:
    """Return the request for a model, and for a version of it if it computes tensors and asks for none."""
    work = request.work
    if isinstance(work, Infer) and version and not work.version:
        work = msgspec.structs.replace(work, version=version)
    return msgspec.structs.replace(request, model=model, work=work)


def alike(draft: Request, first: Request) -> Request:
    """Return a draft for the model, version and adapter of the first of those that belong together."""
    return msgspec.structs.replace(placed(draft, first.model, version_of(first)), adapter=first.adapter)


def adapted(request: Request, adapters: Mapping[str, Adapter]) -> Request:
    """Return the request for the base model if it names an adapter, with that adapter if it asks for text."""
    adapter = adapters.get(request.model)
    if adapter is None:
        return request
    ref = adapter.ref if request.work is None else None  # tokens and embeddings are those of the base model
    return msgspec.structs.replace(request, model=adapter.base, adapter=ref)


def as_recorded(request: Request, record: RequestRecord | None) -> Request:
    """Return a request whose admission was interrupted for the model and adapter that it was for then."""
    if record is None:
        return request
    return msgspec.structs.replace(request, model=record.model, adapter=record.adapter)


def sequence_of(request: Request) -> SequenceStep | None:
    """Return the place of a request in a sequence."""
    return request.work.sequence if isinstance(request.work, Infer) else None


def version_of(request: Request) -> str:
    """Return the version of its model that a request asks for; empty for any."""
    return request.work.version if isinstance(request.work, Infer) else ""
