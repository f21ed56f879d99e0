"""Output file as a journal, without a server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from headrace.batch.input_file import Defaults, InputFile, Line
from headrace.batch.journal import Journal
from headrace.batch.output_record import Record
from shared.errors import ConfigError, InvalidRequest
from tests.support.batch_command import chats, write

DEFAULTS = Defaults("m")


@pytest.fixture
def source(tmp_path: Path) -> InputFile:
    return InputFile.scan(write(tmp_path / "in.jsonl", chats(20)))


async def fill(journal: Journal, *numbers: int) -> None:
    journal.begin(DEFAULTS)
    writing = asyncio.create_task(journal.write())
    for number in numbers:
        await journal.add(Record.from_bad_line(journal.run, Line(number, None), InvalidRequest("no")))
    await journal.end()
    await writing
    journal.close()


async def test_a_torn_output_is_repaired_at_any_byte(source: InputFile, tmp_path: Path) -> None:
    """Given an output cut after any byte, or followed by zeros, exactly the complete records are kept."""
    out = tmp_path / "out.jsonl"
    await fill(Journal.open(out, source), 3, 1, 2)
    data = out.read_bytes()
    for cut in [*range(len(data) + 1), None]:
        out.write_bytes(data + bytes(4096) if cut is None else data[:cut])
        journal = Journal.open(out, source)
        whole = data[:cut].count(b"\n")
        assert journal.done == journal.failed == whole
        assert [number for number in range(1, 21) if not journal.is_missing(number)] == sorted([3, 1, 2][:whole])
        assert out.read_bytes().count(b"\n") == whole
        journal.close()


async def test_a_second_run_on_the_same_output_is_refused(source: InputFile, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    first = Journal.open(out, source)
    with pytest.raises(ConfigError, match="another run"):
        Journal.open(out, source)
    first.close()
    Journal.open(out, source).close()


async def test_a_run_is_bound_to_its_input(source: InputFile, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    await fill(Journal.open(out, source))
    with source.path.open("a") as file:
        file.write("\n")
    with pytest.raises(ConfigError, match="another input"):
        Journal.open(out, InputFile.scan(source.path))


async def test_results_are_sorted_if_ordered(source: InputFile, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    numbers = [7, *range(20, 7, -1), *range(1, 7)]
    await fill(Journal.open(out, source), *numbers)
    journal = Journal.open(out, source)
    assert journal.complete
    journal.finish(ordered=True)
    journal.close()
    found = [json.loads(line)["id"].rsplit("_", 1)[1] for line in out.read_text().splitlines()]
    assert found == [str(number) for number in range(1, 21)]
    assert [path.name for path in tmp_path.iterdir() if path.name != "in.jsonl"] == ["out.jsonl"]
    Journal.open(out, source).close()
