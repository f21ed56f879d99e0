"""Pool of KV blocks with reference counts, and keys that identify the contents of a block."""

from __future__ import annotations

from collections import OrderedDict


class BlockPool:
    """Blocks 0 … num_blocks - 1, each free or held by at least one sequence.

    A block may have a key by which it can be found, both while it is held and while it is free. Free blocks with a
    key are allocated last, in the order in which they became free.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._free_keyed: OrderedDict[int, None] = OrderedDict()  # free blocks with a key; longest free first
        self._references = [0] * num_blocks
        self._uses = [0] * num_blocks
        self._keys: dict[int, bytes] = {}
        self._blocks: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        return len(self._free) + len(self._free_keyed)

    def num_references(self, block: int) -> int:
        return self._references[block]

    def num_uses(self, block: int) -> int:
        """Return how often a block was allocated: while it stays the same, a block with a key has its contents."""
        return self._uses[block]

    def is_read_only(self, block: int) -> bool:
        """Return whether no holder may write to the block, because it is shared or can be found by its key."""
        return self._references[block] > 1 or block in self._keys

    def allocate(self) -> int:
        """Take a free block; one with a key loses it. The pool must have a free block."""
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._free_keyed.popitem(last=False)
            del self._blocks[self._keys.pop(block)]
        self._references[block] = 1
        self._uses[block] += 1
        return block

    def share(self, block: int) -> None:
        """Add a holder to a block that is held or was found by its key."""
        if self._references[block] < 1:
            if block not in self._free_keyed:
                raise ValueError(f"block {block} is free and cannot be shared")
            del self._free_keyed[block]
        self._references[block] += 1

    def release(self, block: int) -> None:
        """Remove a holder of a block, which becomes free with its last one."""
        if self._references[block] < 1:
            raise ValueError(f"block {block} was released twice")
        self._references[block] -= 1
        if self._references[block] == 0:
            if block in self._keys:
                self._free_keyed[block] = None
            else:
                self._free.append(block)

    def register(self, block: int, key: bytes) -> None:
        """Make a held block findable by `key`, unless another block with the same contents already is."""
        if key not in self._blocks and block not in self._keys:
            self._keys[block] = key
            self._blocks[key] = block

    def find(self, key: bytes) -> int | None:
        """Return the block with this key, held or free."""
        return self._blocks.get(key)

    def unregister(self, block: int) -> None:
        """Remove the key of a held block."""
        if block in self._keys:
            del self._blocks[self._keys.pop(block)]
