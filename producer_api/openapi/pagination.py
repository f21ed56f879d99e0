"""OpenAI's pagination of lists: `limit`, `after` and `order`."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from producer_api.openapi.parameters import Described, parameter
from shared.errors import InvalidRequest

MAX_ID_CHARS = 64


@dataclass(frozen=True)
class Page:
    """The part of a list that a request asks for."""

    after: str
    limit: int
    oldest_first: bool

    @classmethod
    def from_request(cls, request: Request, *, default: int, maximum: int) -> Page:
        """Raises InvalidRequest."""
        limit = limit_of(request, default, maximum, digits=6)
        order = request.query_params.get("order", "desc")
        if order not in ("asc", "desc"):
            raise InvalidRequest("order must be asc or desc", param="order")
        return cls(request.query_params.get("after", "")[:MAX_ID_CHARS], limit, order == "asc")


def limit_of(request: Request, default: int, maximum: int, *, digits: int = 4) -> int:
    """Return the number of items in a page, which may be written with so many digits. Raises InvalidRequest."""
    given = request.query_params.get("limit", str(default))
    if not (given.isascii() and given.isdigit() and len(given) <= digits and 1 <= int(given) <= maximum):
        raise InvalidRequest(f"limit must be between 1 and {maximum}", param="limit")
    return int(given)


def limit_parameter(default: int, maximum: int, items: str = "items") -> Described:
    """Return the description of `limit`."""
    text = f"number of {items}; default {default}"
    return parameter("limit", "query", text, type="integer", minimum=1, maximum=maximum)


def page_parameters(default: int, maximum: int) -> list[Described]:
    """Return the descriptions of `limit` and `after`."""
    return [
        limit_parameter(default, maximum),
        parameter("after", "query", "only the items after the one with this id", type="string"),
    ]


ORDER = parameter("order", "query", "by creation time; default desc", type="string", enum=["asc", "desc"])
