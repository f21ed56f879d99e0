"""Cache of responses, for models whose description enables it."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

import msgspec

from shared.protocol import Tensor
from workers.engine.interface import EngineRequest

ENTRY_BYTES = 512  # of an entry, beside its tensors


def response_digest(request: EngineRequest) -> bytes:
    """Return a digest of everything in a request that its response depends on, and of its tenant."""
    assert request.source is not None
    return hashlib.blake2b(
        msgspec.msgpack.encode((request.tenant, request.source.request.work)), digest_size=32
    ).digest()


class ResponseCache:
    """Responses of all models of a process, the least recently used ones leave first. Any thread may use it.

    Args:
        max_bytes: of all entries together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, tuple[Tensor, ...]] = OrderedDict()
        self._bytes = 0

    @property
    def size_bytes(self) -> int:
        return self._bytes

    def get(self, key: bytes) -> tuple[Tensor, ...] | None:
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
            return found

    def put(self, key: bytes, tensors: tuple[Tensor, ...]) -> None:
        """Store a response, unless it is larger than the cache."""
        size = _size(tensors)
        with self._lock:
            if size > self._max_bytes or key in self._entries:
                return
            while self._bytes + size > self._max_bytes:
                _, oldest = self._entries.popitem(last=False)
                self._bytes -= _size(oldest)
            self._entries[key] = tensors
            self._bytes += size


def _size(tensors: tuple[Tensor, ...]) -> int:
    return ENTRY_BYTES + sum(len(tensor.data) for tensor in tensors)
