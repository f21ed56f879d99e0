"""Pool of KV blocks with reference counts, and the keys by which a block is found again."""

from __future__ import annotations

from collections import OrderedDict


class BlockPool:
    """Blocks 0 … num_blocks - 1, each free or held by at least one sequence.

    A block may have a key by which it is found again, while it is held and while it is free. Free blocks with a
    key are given out last, and the one that was free longest first.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._findable: OrderedDict[int, None] = OrderedDict()  # free, with a key; longest free first
        self._references = [0] * num_blocks
        self._keys: dict[int, bytes] = {}
        self._blocks: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        return len(self._free) + len(self._findable)

    def references(self, block: int) -> int:
        return self._references[block]

    def is_relied_on(self, block: int) -> bool:
        """Whether a holder must not write to the block."""
        return self._references[block] > 1 or block in self._keys

    def allocate(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._findable.popitem(last=False)
            del self._blocks[self._keys.pop(block)]
        self._references[block] = 1
        return block

    def share(self, block: int) -> None:
        """For one sequence more: a block that is held, or that was found."""
        if self._references[block] < 1:
            if block not in self._findable:
                raise ValueError(f"block {block} is free and cannot be shared")
            del self._findable[block]
        self._references[block] += 1

    def release(self, block: int) -> None:
        if self._references[block] < 1:
            raise ValueError(f"block {block} was released twice")
        self._references[block] -= 1
        if self._references[block] == 0:
            if block in self._keys:
                self._findable[block] = None
            else:
                self._free.append(block)

    def name(self, block: int, key: bytes) -> None:
        """Let a held block be found by `key`; of several with the same contents, the first."""
        if key not in self._blocks and block not in self._keys:
            self._keys[block] = key
            self._blocks[key] = block

    def find(self, key: bytes) -> int | None:
        return self._blocks.get(key)

    def unname(self, block: int) -> None:
        """Let a held block not be found any more."""
        if block in self._keys:
            del self._blocks[self._keys.pop(block)]
