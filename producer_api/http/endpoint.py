"""Declaration of one HTTP route: everything about it that is not in its handler."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Any

import msgspec
from pydantic import BaseModel
from starlette.responses import Response
from starlette.routing import compile_path

from producer_api.admission.parsed_body import BodyReader
from producer_api.http.errors import NATIVE, ErrorFormat
from shared.accounts.scopes import ROUTES

Handler = Callable[..., Awaitable[Response]]

PARTS = frozenset({"context", "files", "batches"})  # of the application
CALLER = frozenset({"caller", "tenant", "owner"})  # known once the caller is authenticated
METHODS = ("GET", "POST", "DELETE")  # HEAD and OPTIONS follow


@dataclass(frozen=True)
class ResponseDoc:
    """One response, as the OpenAPI document describes it.

    Attributes:
        struct: its JSON body; None for a body that is not JSON, or for none.
        schema: JSON Schema of its body, where no single struct describes it.
        events: structs of the data of its server-sent events; None where it is never a stream.
    """

    description: str
    struct: type[msgspec.Struct] | None = None
    _: KW_ONLY
    status: int = 200
    events: tuple[type[msgspec.Struct], ...] | None = None
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Endpoint:
    """One method of one path.

    The handler's parameters are passed by name: `request`, the parameters of the path, parts of the application
    (`context`, `files`, `batches`), and the caller: `caller` is its Principal, `tenant` its tenant, and `owner` the
    tenant whose objects it may see, None for all of them on the admin port.

    Attributes:
        path: template in Starlette's syntax, such as `/v1/jobs/{job_id}`.
        group: the scope that a key needs, one of ROUTES; None for a public endpoint, or one of the admin port.
        admin: only for keys that may administer.
        errors: the error format of its API.
        charged: requests are charged to the caller's limits; responses carry x-ratelimit headers.
        batchable: reads a line of a batch for this path; None where batches cannot use it.
        logged: False for what monitoring asks every few seconds: it is logged at debug level.
        while_draining: answers while the server shuts down.
        uploads: the body may have max_file_bytes instead of max_body_bytes.
        summary: title in the OpenAPI document; an endpoint without one is not in it.
        body: schema of the JSON request body.
        form: JSON Schema of the multipart request body.
        failures: statuses of its errors, besides those of authentication.
        examples: request bodies by title; a `model` may be a placeholder of openapi.examples.
    """

    method: str
    path: str
    handler: Handler
    _: KW_ONLY
    group: str | None
    admin: bool = False
    errors: ErrorFormat = NATIVE
    charged: bool = False
    batchable: BodyReader | None = None
    logged: bool = True
    while_draining: bool = False
    uploads: bool = False
    summary: str = ""
    tag: str = ""
    body: type[BaseModel] | None = None
    form: Mapping[str, Any] | None = None
    parameters: Sequence[Mapping[str, Any]] = ()
    responses: tuple[ResponseDoc, ...] = ()
    failures: tuple[int, ...] = ()
    examples: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"{self.method} {self.path}"
        assert self.method in METHODS, f"{where}: the method must be one of {METHODS}"
        assert self.group is None or self.group in ROUTES, f"{where}: group {self.group!r} is not one of {ROUTES}"
        in_path = set(compile_path(self.path)[2])
        assert in_path <= self.handler_parameters, f"{where}: the handler does not take {in_path}"
        known = PARTS | {"request"} | in_path | (frozenset() if self.public else CALLER)
        unknown = self.handler_parameters - known
        assert not unknown, f"{where}: the handler's parameters {sorted(unknown)} are not known"
        assert self.batchable is None or self.method == "POST", f"{where}: only a POST can be batchable"
        assert not self.summary or self.responses, f"{where}: the OpenAPI document needs a response"

    @property
    def public(self) -> bool:
        return self.group is None and not self.admin

    @property
    def changes(self) -> bool:
        """True for an administrative action, which the audit log records."""
        return self.admin and self.method != "GET"

    @cached_property
    def handler_parameters(self) -> frozenset[str]:
        """Names of the parameters to pass: one with a default is passed if the path has it."""
        in_path = compile_path(self.path)[2]
        found = inspect.signature(self.handler).parameters
        return frozenset(name for name, each in found.items() if each.default is each.empty or name in in_path)
