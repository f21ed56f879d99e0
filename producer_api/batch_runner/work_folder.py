"""Working files of a batch on disk, until it ends: its input, and the results of each chunk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from shared.batches.store import Item, chunk_name
from shared.files.content import Draft, sync_folder

INPUT = "input.jsonl"
KINDS = ("output", "errors")
COPY_BLOCK_BYTES = 2**20


class WorkFolder:
    """Folder of one batch.

    Args:
        root: has the folders of all batches.
    """

    def __init__(self, root: Path, batch_id: str) -> None:
        self._path = root / batch_id

    @property
    def input(self) -> Path:
        return self._path / INPUT

    def keep_input(self, content: Path) -> None:
        """Keep the input even if its file is deleted meanwhile. Raises FileNotFoundError."""
        self._path.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.link(content, self.input)
        sync_folder(self._path)

    def write(self, item: Item, kind: str, lines: Sequence[bytes]) -> None:
        """Write a chunk's results of one kind durably; without results, write no file."""
        if not lines:
            return
        draft = Draft(self._results(item.name, item.fence, kind))
        try:
            for line in lines:
                draft.write(line)
            draft.keep()
        finally:
            draft.discard()

    def concatenate(self, lease_epochs: Sequence[str], kind: str, draft: Draft) -> None:
        """Write all results of one kind to `draft`, in order. Raises FileNotFoundError if the batch has ended.

        A part that is missing has no results of this kind, as long as the input, which is deleted first, is there.
        """
        for number, lease_epoch in enumerate(lease_epochs):
            with (
                suppress(FileNotFoundError),
                self._results(chunk_name(number), lease_epoch, kind).open("rb") as part,
            ):
                while block := part.read(COPY_BLOCK_BYTES):
                    draft.write(block)
        self.input.stat()

    def remove(self) -> None:
        _remove(self._path)

    def _results(self, name: str, lease_epoch: str, kind: str) -> Path:
        return self._path / f"{name}-{lease_epoch}.{kind}"


def batches_with_folders(root: Path) -> set[str]:
    """Return the ids of all batches that have a folder."""
    return {path.name for path in root.iterdir()} if root.is_dir() else set()


def remove_all(root: Path, ended_batches: Iterable[str]) -> None:
    """Delete the folders of ended batches."""
    for name in ended_batches:
        _remove(root / name)


def _remove(path: Path) -> None:
    """Delete a folder, its input first: a process that still reads its results then knows that some are missing."""
    with suppress(OSError):
        (path / INPUT).unlink()
    shutil.rmtree(path, ignore_errors=True)
