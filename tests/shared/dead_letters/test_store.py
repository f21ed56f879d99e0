"""The store of dead letters."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from shared.backend import Backend
from shared.dead_letters.store import DeadLetter
from shared.protocol import ErrorInfo
from shared.settings import Settings
from tests.support.fakes import make_request


def letter(at: float) -> DeadLetter:
    return DeadLetter(make_request(), ErrorInfo("request_abandoned", "three workers were lost"), 3, at)


async def test_dead_letters_are_listed_newest_first_page_by_page(backend: Backend) -> None:
    letters = [letter(1000.0 + i) for i in range(5)]
    for each in (*letters, letters[4]):
        await backend.dead_letters.add(each)

    newest = letters[::-1]
    first = await backend.dead_letters.list(most=2)
    assert list(first) == newest[:2]
    assert list(await backend.dead_letters.list(after=first[-1].id, most=10)) == newest[2:]
    assert await backend.dead_letters.list(after="req_unknown") == []
    assert await backend.dead_letters.get(letters[0].id) == letters[0]

    assert await backend.dead_letters.remove([letters[0].id, "req_unknown"]) == 1
    assert await backend.dead_letters.get(letters[0].id) is None
    assert await backend.dead_letters.purge() == 4
    assert await backend.dead_letters.list() == []


@pytest.mark.parametrize("kind", ["redis", "memory"])
async def test_dead_letters_are_bounded_in_number_and_age(
    kind: str, settings: Settings, backend_of: Callable[[str, Settings], Awaitable[Backend]]
) -> None:
    backend = await backend_of(kind, settings.model_copy(update={"dead_letters": 2, "dead_letter_ttl": 10.0}))
    letters = [letter(at) for at in (1000.0, 1001.0, 1002.0, 1011.5)]
    for each in letters[:3]:
        await backend.dead_letters.add(each)
    assert list(await backend.dead_letters.list()) == [letters[2], letters[1]]
    await backend.dead_letters.add(letters[3])
    assert [each.at for each in await backend.dead_letters.list()] == [1011.5, 1002.0]
