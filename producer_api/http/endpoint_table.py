"""The endpoints of one application, and which of them a request is for.

A request is matched once, by the outermost layer; every inner layer reads the result from the scope.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from types import MappingProxyType
from urllib.parse import unquote

from starlette.routing import compile_path
from starlette.types import Scope

from producer_api.http.endpoint import Endpoint
from producer_api.http.errors import NATIVE, ErrorFormat

SLASHES = re.compile("/{2,}")
PARAMETER = re.compile(r"\{[^}]*\}")
NO_PARAMETERS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Match:
    """Result of the table for one request.

    Attributes:
        errors: the format of any error in the response.
        path: the path that was matched, in its canonical form.
        endpoint: None for an unknown path, and for a path without this method. HEAD is matched to GET.
        template: of the path; empty for an unknown one.
        allowed: the methods of the path.
    """

    path: str
    errors: ErrorFormat
    endpoint: Endpoint | None = None
    path_params: Mapping[str, str] = field(default_factory=dict)
    template: str = ""
    allowed: tuple[str, ...] = ()


def canonical(path: str) -> str:
    """Return the path without trailing and double slashes, which clients produce by joining URLs.

    A redirect would not do: many clients repeat a redirected POST without its body.
    """
    return "/" + SLASHES.sub("/", path).strip("/")


def match_of(scope: Scope) -> Match:
    """Return the match that the outermost layer has stored."""
    found: Match = scope["state"]["match"]
    return found


def answer_errors_in(scope: Scope, errors: ErrorFormat) -> None:
    """Answer further errors of the request in another format, for an endpoint that takes the bodies of two APIs."""
    scope["state"]["match"] = replace(match_of(scope), errors=errors)


@dataclass
class _Resource:
    """One path template with its endpoints by method."""

    template: str
    methods: dict[str, Endpoint] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.regex, _, self.parameters = compile_path(self.template)
        self.segments = self.template.split("/")[1:]

    def match(self, method: str, path: str, path_params: Mapping[str, str]) -> Match:
        endpoint = self.methods.get("GET" if method == "HEAD" else method)
        errors = (endpoint or next(iter(self.methods.values()))).errors
        return Match(path, errors, endpoint, path_params, self.template, self.allowed)

    @property
    def allowed(self) -> tuple[str, ...]:
        return (*self.methods, *(("HEAD",) if "GET" in self.methods else ()), "OPTIONS")

    def shared_segments(self, segments: Sequence[str]) -> int:
        """Return how many leading segments of a path this template has."""
        for count, (mine, given) in enumerate(zip(self.segments, segments, strict=False)):
            if mine != given and not mine.startswith("{"):
                return count
        return min(len(self.segments), len(segments))


class EndpointTable:
    """Finds the endpoint of a request by its method and path."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self.endpoints = tuple(endpoints)
        resources: dict[str, _Resource] = {}
        for endpoint in endpoints:
            methods = resources.setdefault(endpoint.path, _Resource(endpoint.path)).methods
            assert endpoint.method not in methods, f"{endpoint.method} {endpoint.path} is declared twice"
            methods[endpoint.method] = endpoint
        self._resources = tuple(resources.values())
        self._fixed = {each.template: each for each in self._resources if not each.parameters}
        self._templates = tuple(each for each in self._resources if each.parameters)
        self._wider = self._find_wider()
        self._exact = {  # most requests are for a path as it is declared
            (method, path): resource.match(method, path, NO_PARAMETERS)
            for path, resource in self._fixed.items()
            for method in resource.methods
        }

    def _find_wider(self) -> frozenset[Endpoint]:
        """Return the endpoints that change all objects, and have the path of one object without its id.

        `DELETE /v1/dead-letters/`, where an id is missing, must not be `DELETE /v1/dead-letters`.
        """
        found = set()
        for endpoint in self.endpoints:
            for parameter in PARAMETER.finditer(endpoint.path) if endpoint.method != "GET" else ():
                rest = self._fixed.get(
                    canonical(endpoint.path[: parameter.start()] + endpoint.path[parameter.end() :])
                )
                found.update([rest.methods[endpoint.method]] if rest and endpoint.method in rest.methods else [])
        return frozenset(found)

    @cached_property
    def batchable(self) -> tuple[str, ...]:
        """Paths that a batch may name as its endpoint."""
        return tuple(each.path for each in self.endpoints if each.batchable is not None)

    def match(self, method: str, path: str) -> Match:
        """Return the endpoint of a request with the parameters of its path, or what an error response needs.

        Args:
            path: as it was sent. A parameter may have any slashes in it, written as %2F.
        """
        if (exact := self._exact.get((method, path))) is not None:
            return exact
        sent, path = unquote(path), unquote(canonical(path))
        found = self._nearest(method, path)
        if found is None or (found.endpoint in self._wider and sent != canonical(sent)):
            return Match(path, self.errors_at(path))
        return found

    def _nearest(self, method: str, path: str) -> Match | None:
        if (fixed := self._fixed.get(plain := canonical(path))) is not None:
            return fixed.match(method, plain, NO_PARAMETERS)
        for resource in self._templates:
            if (found := resource.regex.match(path)) is not None:
                return resource.match(method, path, found.groupdict())
        return None

    def errors_at(self, path: str) -> ErrorFormat:
        """Return the error format of the endpoint that shares most leading segments with `path`.

        Of several, the first one declared; NATIVE where no endpoint shares any.
        """
        segments = canonical(path).split("/")[1:]
        nearest = max(self._resources, key=lambda each: each.shared_segments(segments))
        if not nearest.shared_segments(segments):
            return NATIVE
        return next(iter(nearest.methods.values())).errors


@cache
def table_of(endpoints: tuple[Endpoint, ...]) -> EndpointTable:
    """Return the one table of these endpoints, which applications of a process share: it never changes."""
    return EndpointTable(endpoints)
