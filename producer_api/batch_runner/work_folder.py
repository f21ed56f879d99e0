"""The working files of batches on disk: the input as it was and each chunk's results, until the batch has ended."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from shared.batches.store import Item, chunk_name
from shared.files.content import Draft, sync_folder

KINDS = ("output", "errors")
BLOCK = 2**20  # bytes copied at once


class Folder:
    """Of one batch.

    Args:
        root: of all batches' folders.
    """

    def __init__(self, root: Path, batch_id: str) -> None:
        self._path = root / batch_id

    @property
    def input(self) -> Path:
        return self._path / "input.jsonl"

    def keep_input(self, content: Path) -> None:
        """The input stays as it is even if its file is deleted meanwhile. Raises FileNotFoundError."""
        self._path.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.link(content, self.input)
        sync_folder(self._path)

    def write(self, item: Item, kind: str, lines: Sequence[bytes]) -> None:
        """A chunk's results of one kind, durable when this returns; nothing where there are none."""
        if not lines:
            return
        draft = Draft(self._results(item.name, item.fence, kind))
        try:
            for line in lines:
                draft.write(line)
            draft.keep()
        finally:
            draft.discard()

    def concatenate(self, fences: Sequence[str], kind: str, draft: Draft) -> None:
        """All chunks' results of one kind, in order. Raises FileNotFoundError where the batch has ended."""
        self.input.stat()
        for number, fence in enumerate(fences):
            with suppress(FileNotFoundError), self._results(chunk_name(number), fence, kind).open("rb") as part:
                while block := part.read(BLOCK):
                    draft.write(block)

    def remove(self) -> None:
        shutil.rmtree(self._path, ignore_errors=True)

    def _results(self, name: str, fence: str, kind: str) -> Path:
        return self._path / f"{name}-{fence}.{kind}"


def remove_all_but(root: Path, open_batches: Collection[str]) -> None:
    """What is left of batches that have ended."""
    if root.is_dir():
        for path in root.iterdir():
            if path.name not in open_batches:
                shutil.rmtree(path, ignore_errors=True)
