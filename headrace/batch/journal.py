"""Output file of a batch run, which is also its journal: a line with a record in it is done, even after a crash.

Until the run is finished, a small file beside the output (`<output>.run`) holds the run's identity, so that a run
killed before its first result sends its requests under the same keys again.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import msgspec

from headrace.batch.input_file import Defaults, InputFile
from headrace.batch.output_record import ID, Record, RecordHead
from shared.errors import ConfigError, HeadraceError

MAX_RECORD_BYTES = 256 * 2**20  # a longer line was not written by a run
MAX_PENDING_RECORDS = 1024  # records that wait to be written; beyond that the run waits
RUN_ID_PART_DIGITS = 16  # a run's id is so many random hexadecimal digits, then as many of the input's digest


class RunIdentity(msgspec.Struct, frozen=True):
    """Identity of a run: its id, the digest of its input, and its defaults.

    `result_offsets`: the offset of each partition from which results are read; None for a run over HTTP.
    """

    run: str
    digest: str
    defaults: Defaults
    result_offsets: dict[str, int] | None = msgspec.field(default=None, name="results")


class Journal:
    """The open and locked output file of one run. Use `open`.

    Attributes:
        identity: None for a new run until `begin`.
        done: number of lines that have a record; `failed` of them are errors.
    """

    def __init__(self, path: Path, source: InputFile, file: IO[bytes]) -> None:
        self.path = path
        self.identity: RunIdentity | None = None
        self.done = self.failed = 0
        self._source = source
        self._file = file
        self._seen = bytearray(source.lines // 8 + 1)
        self._records: asyncio.Queue[Record | None] = asyncio.Queue(MAX_PENDING_RECORDS)

    @classmethod
    def open(cls, path: Path, source: InputFile) -> Journal:
        """Open the output of a run over `source`, new or to be resumed.

        Raises ConfigError if `path` cannot be written, holds something else, or is open in another run.
        """
        try:
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from None
        journal = cls(path, source, file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            journal._resume()
        except BlockingIOError:
            file.close()
            raise ConfigError(f"another run is writing to {path}") from None
        except BaseException:
            file.close()
            raise
        return journal

    @property
    def _identity_path(self) -> Path:
        return self.path.with_name(self.path.name + ".run")

    @property
    def complete(self) -> bool:
        return self.done == self._source.requests

    @property
    def run(self) -> str:
        assert self.identity is not None
        return self.identity.run

    @property
    def result_offsets(self) -> dict[str, int] | None:
        """The offset of each partition from which results are read; None for a run over HTTP."""
        assert self.identity is not None
        return self.identity.result_offsets

    def is_missing(self, number: int) -> bool:
        """Return whether a line of the input has no record yet."""
        return not self._seen[number // 8] >> number % 8 & 1

    def begin(self, defaults: Defaults, result_offsets: dict[str, int] | None = None) -> None:
        """Store the identity of a new run on disk, before its first request is sent."""
        if self.identity is None:
            run = secrets.token_hex(RUN_ID_PART_DIGITS // 2) + self._source.digest[:RUN_ID_PART_DIGITS]
            self.identity = RunIdentity(run, self._source.digest, defaults, result_offsets)
            _replace(self._identity_path, [msgspec.json.encode(self.identity)])

    async def add(self, record: Record) -> None:
        await self._records.put(record)

    async def write(self) -> None:
        """Write the added records until `end`, all that are pending with one fsync. Raises HeadraceError."""
        ended = False
        while not ended:
            batch = [await self._records.get()]
            while not self._records.empty():
                batch.append(self._records.get_nowait())
            ended = batch[-1] is None
            await asyncio.to_thread(self._commit, [record for record in batch if record is not None])

    async def end(self) -> None:
        """Let `write` return once it has written all added records."""
        await self._records.put(None)

    def _commit(self, records: list[Record]) -> None:
        try:
            self._file.write(b"".join([msgspec.json.encode(record) + b"\n" for record in records]))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise HeadraceError(f"cannot write {self.path}: {error.strerror}") from None
        self.done += len(records)
        self.failed += sum(record.failed for record in records)

    def finish(self, *, ordered: bool) -> None:
        """Sort the output if asked to, and remove the identity file. Raises HeadraceError."""
        try:
            if ordered:
                self._sort_output()
            self._identity_path.unlink(missing_ok=True)
        except OSError as error:
            raise HeadraceError(f"cannot finish writing {self.path}: {error.strerror}") from None

    def close(self) -> None:
        self._file.close()

    def _resume(self) -> None:
        """Find the run that wrote the output, mark its finished lines, and cut off a torn record."""
        if self._identity_path.exists():
            try:
                self.identity = msgspec.json.decode(self._identity_path.read_bytes(), type=RunIdentity)
            except (msgspec.MsgspecError, OSError) as error:
                raise ConfigError(f"cannot read {self._identity_path}: {error}") from None
            if self.identity.digest != self._source.digest:
                raise ConfigError(f"{self.path} belongs to a run with another input than {self._source.path}")
        run = self.identity.run if self.identity else None
        end = self._mark_finished_lines(run)
        self._file.truncate(end)
        self._file.seek(end)

    def _mark_finished_lines(self, run: str | None) -> int:
        """Mark the lines that have a record, and return the position after the last whole record."""
        end = 0
        while raw := self._file.readline(MAX_RECORD_BYTES):
            torn = not raw.endswith(b"\n")
            if torn and (end or run):
                break  # only the last record can be torn
            head = _parse_head(raw)
            found = ID.fullmatch(head.id) if head else None
            if (
                head is None
                or found is None
                or not self._is_run_of_input(found[1], run)
                or int(found[2]) > self._source.lines
            ):
                raise ConfigError(f"{self.path} exists and does not hold results of {self._source.path}")
            run, number = found[1], int(found[2])
            if self.is_missing(number):
                self._seen[number // 8] |= 1 << number % 8
                self.done += 1
                self.failed += head.response is None or head.response.status_code >= 400
            end += len(raw)
        if run is not None and self.identity is None:
            self.identity = RunIdentity(run, self._source.digest, Defaults(""))
        return end

    def _is_run_of_input(self, run: str, known: str | None) -> bool:
        return run == known if known else run.endswith(self._source.digest[:RUN_ID_PART_DIGITS])

    def _sort_output(self) -> None:
        """Put the records into the order of the input, with an index of 8 bytes per line."""
        positions = array("Q", bytes(8 * (self._source.lines + 1)))  # of the record, plus 1; 0: no record
        self._file.seek(0)
        position = 0
        while raw := self._file.readline():
            head = _parse_head(raw)
            found = ID.fullmatch(head.id) if head else None
            assert found is not None
            positions[int(found[2])] = position + 1
            position += len(raw)

        def records() -> Iterator[bytes]:
            for position in positions:
                if position:
                    self._file.seek(position - 1)
                    yield self._file.readline()

        _replace(self.path, records())


def _parse_head(raw: bytes) -> RecordHead | None:
    try:
        return msgspec.json.decode(raw, type=RecordHead)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _replace(path: Path, parts: Iterable[bytes]) -> None:
    """Replace a file atomically and durably."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
