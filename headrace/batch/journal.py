"""The output of a batch run, which is also its journal: what is in it is done, whoever dies.

While a run is not finished a small file beside the output (`<output>.run`) holds its identity, so that one killed
before its first result asks for its requests by the same keys again.
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

from headrace.batch.input_file import Defaults, Source
from headrace.batch.output_record import ID, Head, Record
from shared.errors import ConfigError, HeadraceError

MOST_RECORD = 256 * 2**20  # bytes; a longer line is none of ours
WAITING = 1024  # records that wait for the disk; then the run does
DIGITS = 16  # of a run's id are random, as many are the input's


class Identity(msgspec.Struct, frozen=True):
    """A run: its random id, its input, and what its lines get that they do not say.

    `results` holds where the reading of the results begins, by partition; None for a run over HTTP.
    """

    run: str
    digest: str
    defaults: Defaults
    results: dict[str, int] | None = None


class Journal:
    """The open output; nobody else has it. Use `open`.

    Attributes:
        identity: None until `begin`, where there was none to go on with.
        done: how many lines are in it already; `failed` of them are errors.
    """

    def __init__(self, path: Path, source: Source, file: IO[bytes]) -> None:
        self.path = path
        self.identity: Identity | None = None
        self.done = self.failed = 0
        self._source = source
        self._file = file
        self._seen = bytearray(source.lines // 8 + 1)
        self._records: asyncio.Queue[Record | None] = asyncio.Queue(WAITING)

    @classmethod
    def open(cls, path: Path, source: Source) -> Journal:
        """Raises ConfigError where `path` cannot be the output of `source`, or another run has it open."""
        try:
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from None
        journal = cls(path, source, file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            journal._go_on()
        except BlockingIOError:
            file.close()
            raise ConfigError(f"another run is writing {path}") from None
        except BaseException:
            file.close()
            raise
        return journal

    @property
    def _beside(self) -> Path:
        return self.path.with_name(self.path.name + ".run")

    @property
    def complete(self) -> bool:
        return self.done == self._source.requests

    @property
    def run(self) -> str:
        assert self.identity is not None
        return self.identity.run

    @property
    def results(self) -> dict[str, int] | None:
        """Where the reading of the results begins."""
        assert self.identity is not None
        return self.identity.results

    def missing(self, number: int) -> bool:
        """Whether that line of the input has no record yet."""
        return not self._seen[number // 8] >> number % 8 & 1

    def begin(self, defaults: Defaults, results: dict[str, int] | None = None) -> None:
        """Fix a new run's identity, on disk, before its first request."""
        if self.identity is None:
            run = secrets.token_hex(DIGITS // 2) + self._source.digest[:DIGITS]
            self.identity = Identity(run, self._source.digest, defaults, results)
            _replace(self._beside, [msgspec.json.encode(self.identity)])

    async def add(self, record: Record) -> None:
        await self._records.put(record)

    async def write(self) -> None:
        """Write what is added, as many records as there are with one fsync, until `end`. Raises HeadraceError."""
        ended = False
        while not ended:
            batch = [await self._records.get()]
            while not self._records.empty():
                batch.append(self._records.get_nowait())
            ended = batch[-1] is None
            await asyncio.to_thread(self._commit, [record for record in batch if record is not None])

    async def end(self) -> None:
        """Nothing more is added."""
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
        """The run is complete: nothing but the output is left. Raises HeadraceError."""
        try:
            if ordered:
                self._sort()
            self._beside.unlink(missing_ok=True)
        except OSError as error:
            raise HeadraceError(f"cannot finish {self.path}: {error.strerror}") from None

    def close(self) -> None:
        self._file.close()

    def _go_on(self) -> None:
        """Find the run that the output is of, mark what it has done, and cut off what is torn."""
        if self._beside.exists():
            try:
                self.identity = msgspec.json.decode(self._beside.read_bytes(), type=Identity)
            except (msgspec.MsgspecError, OSError) as error:
                raise ConfigError(f"{self._beside} cannot be read: {error}") from None
            if self.identity.digest != self._source.digest:
                raise ConfigError(f"{self.path} was begun with another input than {self._source.path}")
        run = self.identity.run if self.identity else None
        end = self._mark(run)
        self._file.truncate(end)
        self._file.seek(end)

    def _mark(self, run: str | None) -> int:
        """Mark the lines that have a record; where the last whole record ends."""
        end = 0
        while raw := self._file.readline(MOST_RECORD):
            torn = not raw.endswith(b"\n")
            if torn and (end or run):
                break  # half a line is always the last
            head = _head(raw)
            found = ID.fullmatch(head.id) if head else None
            if head is None or found is None or not self._ours(found[1], run) or int(found[2]) > self._source.lines:
                raise ConfigError(f"{self.path} holds something else than results of {self._source.path}")
            run, number = found[1], int(found[2])
            if self.missing(number):
                self._seen[number // 8] |= 1 << number % 8
                self.done += 1
                self.failed += head.response is None or head.response.status_code >= 400
            end += len(raw)
        if run is not None and self.identity is None:
            self.identity = Identity(run, self._source.digest, Defaults(""))
        return end

    def _ours(self, run: str, known: str | None) -> bool:
        return run == known if known else run.endswith(self._source.digest[:DIGITS])

    def _sort(self) -> None:
        """In the order of the input, by an index of 8 bytes a line."""
        places = array("Q", bytes(8 * (self._source.lines + 1)))
        self._file.seek(0)
        place = 0
        while raw := self._file.readline():
            head = _head(raw)
            found = ID.fullmatch(head.id) if head else None
            assert found is not None
            places[int(found[2])] = place + 1
            place += len(raw)

        def records() -> Iterator[bytes]:
            for place in places:
                if place:
                    self._file.seek(place - 1)
                    yield self._file.readline()

        _replace(self.path, records())


def _head(raw: bytes) -> Head | None:
    try:
        return msgspec.json.decode(raw, type=Head)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _replace(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file whole or not at all."""
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
