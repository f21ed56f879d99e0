"""Log lines to a pipe without a reader: writes do not block, and lost lines are counted."""

from __future__ import annotations

import os

from shared.runtime.log_writer import Lines


def test_a_full_pipe_blocks_no_writer() -> None:
    """Writes to a full pipe return at once; lost lines are counted, the others arrive whole and in order."""
    reading, writing = os.pipe()
    line, written = "x" * 1000, 300  # a pipe holds 64 KiB
    with os.fdopen(reading, "rb") as reader:
        lines = Lines(writing, most=100)
        for number in range(written):
            lines.write(f"{number} {line}\n")
        lines.settle(0.01)
        assert 0 < lines.dropped < written
        kept = written - lines.dropped
        numbers = [int(reader.readline().split()[0]) for _ in range(kept)]
        assert numbers == sorted(set(numbers))
        lines.settle()
        lines.write("after\n")
        assert reader.readline() == b"after\n"
    os.close(writing)


def test_a_reader_that_has_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    lines = Lines(writing)
    lines.write("lost\n")
    lines.settle()
    os.close(writing)
    assert lines.dropped == 1
