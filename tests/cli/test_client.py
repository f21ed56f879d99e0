"""The client against answers made by hand."""

from __future__ import annotations

import httpx

from headrace.client import HeadraceClient

TOKEN = 'id: 0\nevent: token\ndata: {"seq": 0, "tokens": []}\n\n'
DONE = 'id: 1\nevent: done\ndata: {"seq": 1}\n\n'
KEEPALIVE = ": keepalive\n\n"


def test_keepalives_between_tokens_are_no_events() -> None:
    """Given silence after a token, Expect its comments to be skipped, though an id was seen before them."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(
            200, headers={"content-type": "text/event-stream"}, text=KEEPALIVE + TOKEN + KEEPALIVE + DONE
        )

    with HeadraceClient("http://test") as client:
        client._http.close()
        client._http = httpx.Client(base_url="http://test", transport=httpx.MockTransport(answer))
        assert [event.name for event in client.events("req")] == ["token", "done"]
