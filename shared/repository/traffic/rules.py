"""Rules for the requests for a name: aliases, splits between models and versions, and shadow copies.

A split is for the name that a caller asks for, which may be a model's own. Its branches are models: a name is
looked up once, so splits form no chains.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import msgspec

from shared.errors import InvalidRequest
from shared.models.names import MODEL_NAME, VERSION

MAX_NAMES = 1_000  # with a split, and with shadow copies
MAX_BRANCHES = 16
KeyKind = Literal["request", "route_key", "tenant", "user", "api_key"]


class Branch(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model, or one version of it, and its part of the traffic, relative to the weights of the other branches."""

    model: str
    version: str = ""
    weight: float = 1.0


class Split(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Distribution of the requests for `name`; an alias has one branch.

    Attributes:
        by: what decides. Requests with the same value take the same branch: the request's own id, the header
            x-route-key (of a request without it, the id), the tenant, the `user` that the client names, or the API
            key.
    """

    name: str
    branches: tuple[Branch, ...]
    by: KeyKind = "request"

    def choose(self, value: str) -> Branch:
        """Return the branch for a value.

        A branch that comes last, as a canary does, keeps the values that it has while its weight grows.
        """
        return _weighted(self.branches, _point(self.name, value))

    def instead(self, value: str, models: Collection[str]) -> Branch | None:
        """Return the branch for a value among those of some models, by their weights; None if none of them counts.

        It does not follow from what `choose` returns, so that all of them share the values of another branch.
        """
        left = [branch for branch in self.branches if branch.weight and branch.model in models]
        return _weighted(left, _point(f"instead:{self.name}", value)) if left else None


class Shadow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Copies of a share of the requests for `name`, from 0 to 1, that another model or version computes, too."""

    name: str
    model: str
    version: str = ""
    share: float = 1.0

    def takes(self, job_id: str) -> bool:
        """Return True if a request is copied."""
        return _point(f"shadow:{self.name}", job_id) < self.share


class Traffic(msgspec.Struct, frozen=True):
    """Splits and shadow copies, by name."""

    splits: Mapping[str, Split] = {}
    shadows: Mapping[str, Shadow] = {}


def _weighted(branches: Sequence[Branch], point: float) -> Branch:
    """Return the branch at a point, from 0 to below 1, of branches that lie side by side by weight."""
    rest = point * sum(branch.weight for branch in branches)
    for branch in branches:
        rest -= branch.weight
        if rest < 0:
            return branch
    return next(branch for branch in reversed(branches) if branch.weight)  # after rounding


def check_split(split: Split, traffic: Traffic) -> None:
    """Raise InvalidRequest for a split that has no meaning beside the present ones."""
    _check_name("name", split.name)
    if not 1 <= len(split.branches) <= MAX_BRANCHES:
        raise InvalidRequest(f"branches must have between 1 and {MAX_BRANCHES} entries", param="branches")
    for i, branch in enumerate(split.branches):
        _check_target(f"branches[{i}]", branch.model, branch.version)
        if not (math.isfinite(branch.weight) and branch.weight >= 0):
            raise InvalidRequest(f"branches[{i}].weight must be at least 0", param=f"branches[{i}].weight")
    if not 0 < sum(branch.weight for branch in split.branches) < math.inf:
        raise InvalidRequest("the weights of branches must have a sum above 0", param="branches")
    if split.name not in traffic.splits and len(traffic.splits) >= MAX_NAMES:
        raise InvalidRequest(f"at most {MAX_NAMES} names can be split", param="name")


def check_shadow(shadow: Shadow, traffic: Traffic) -> None:
    """Raise InvalidRequest for shadow copies that have no meaning."""
    _check_name("name", shadow.name)
    _check_target("", shadow.model, shadow.version)
    if not 0 < shadow.share <= 1:
        raise InvalidRequest(f"share must be above 0 and at most 1, got {shadow.share}", param="share")
    if shadow.name not in traffic.shadows and len(traffic.shadows) >= MAX_NAMES:
        raise InvalidRequest(f"at most {MAX_NAMES} names can have shadow copies", param="name")


def _check_name(param: str, name: str) -> None:
    if not MODEL_NAME.fullmatch(name):
        raise InvalidRequest(f"{param} must match {MODEL_NAME.pattern}", param=param)


def _check_target(param: str, model: str, version: str) -> None:
    prefix = f"{param}." if param else ""
    _check_name(f"{prefix}model", model)
    if version and not VERSION.fullmatch(version):
        raise InvalidRequest(f"{prefix}version must be a number from 1, or empty", param=f"{prefix}version")


def _point(name: str, value: str) -> float:
    """Return a number from 0 to below 1, evenly distributed over values, and independent between names."""
    digest = hashlib.sha256(f"{name}\0{value}".encode(errors="replace")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
