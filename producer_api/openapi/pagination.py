"""OpenAI's paging of lists: how many, after which, in which order."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from producer_api.openapi.document import Described, parameter
from shared.errors import InvalidRequest

ID_CHARS = 64


@dataclass(frozen=True)
class Page:
    """What of a list is asked for."""

    after: str
    limit: int
    oldest_first: bool

    @classmethod
    def of(cls, request: Request, *, usual: int, most: int) -> Page:
        """Raises InvalidRequest."""
        given = request.query_params.get("limit", str(usual))
        if not (given.isascii() and given.isdigit() and len(given) < 7 and 1 <= int(given) <= most):
            raise InvalidRequest(f"limit must be a number from 1 to {most}", param="limit")
        order = request.query_params.get("order", "desc")
        if order not in ("asc", "desc"):
            raise InvalidRequest("order must be asc or desc", param="order")
        return cls(request.query_params.get("after", "")[:ID_CHARS], int(given), order == "asc")


def paging(usual: int, most: int) -> list[Described]:
    """The parameters, described."""
    return [
        parameter("limit", "query", f"most to list; default {usual}", type="integer", minimum=1, maximum=most),
        parameter("after", "query", "only those that come after the one with this id", type="string"),
    ]


ORDER = parameter("order", "query", "by the time of making; default desc", type="string", enum=["asc", "desc"])
