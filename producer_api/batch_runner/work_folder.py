"""Working files of a batch on disk, until it ends: its input, and the results of each chunk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from shared.batches.store import Item, chunk_name
from shared.files.content import Draft, sync_folder

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
        return self._path / "input.jsonl"

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
        """Write all results of one kind to `draft`, in order. Raises FileNotFoundError if the batch has ended."""
        self.input.stat()
        for number, lease_epoch in enumerate(lease_epochs):
            with (
                suppress(FileNotFoundError),
                self._results(chunk_name(number), lease_epoch, kind).open("rb") as part,
            ):
                while block := part.read(COPY_BLOCK_BYTES):
                    draft.write(block)

    def remove(self) -> None:
        shutil.rmtree(self._path, ignore_errors=True)

    def _results(self, name: str, lease_epoch: str, kind: str) -> Path:
        return self._path / f"{name}-{lease_epoch}.{kind}"


def remove_all_but(root: Path, open_batches: Collection[str]) -> None:
    """Delete the folders of ended batches."""
    if root.is_dir():
        for path in root.iterdir():
            if path.name not in open_batches:
                shutil.rmtree(path, ignore_errors=True)
