"""A job on the scripted engine as a client of the native API sees it: its tokens, and those that it must have."""

from __future__ import annotations

import threading

from headrace.client import HeadraceClient
from workers.scripted_engine import expected


def scripted_tokens(prompt: str, count: int) -> list[int]:
    return [expected([ord(character) for character in prompt], 0, position) for position in range(count)]


def follow(url: str, job_id: str, begun: threading.Event | None = None) -> list[int]:
    """Return the tokens of a job, and check that there is neither a gap nor a repeat.

    `begun` is set with the first token.
    """
    tokens: list[int] = []
    with HeadraceClient(url) as client:
        for event in client.events(job_id):
            if event.name == "token":
                assert event.data["seq"] == len(tokens)
                tokens += [token["id"] for token in event.data["tokens"]]
                if begun is not None:
                    begun.set()
            else:
                assert event.name == "done", event
    return tokens
