"""Messages between rank 0 and another rank, over a socket pair: JSON while they start, then the inputs of steps."""

from __future__ import annotations

import socket
from typing import TypeVar

import msgspec

SIZE_BYTES = 8
SEND_TIMEOUT_S = 60.0  # a rank that hangs reads nothing
MAX_BYTES = 2**32  # the size comes from a process that may have overwritten its own memory

Message = TypeVar("Message")


class Start(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """First message to a rank. `config` has the fields of `EngineConfig`, with folders as strings."""

    rank: int
    size: int
    config: dict[str, object]
    dtype: str


class Capacity(msgspec.Struct, frozen=True, tag=True):
    """Number of KV blocks that a rank has room for."""

    num_blocks: int


class Load(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Sizes that the ranks agreed on; `store` is the file by which they find each other."""

    num_blocks: int
    max_model_len: int
    store: str


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """The rank is ready for steps."""


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The rank ends, for this reason."""

    message: str
    param: str | None = None


class Channel:
    """One end of a socket pair. The calls raise OSError, and EOFError once the other end is closed.

    Args:
        patience: seconds that `receive` waits; None for as long as the other end is open.
    """

    def __init__(self, connection: socket.socket, patience: float | None = None) -> None:
        self._socket = connection
        self._patience = patience

    def send(self, message: msgspec.Struct) -> None:
        self.send_bytes(msgspec.json.encode(message))

    def receive(self, kind: type[Message]) -> Message | Refused:
        found: Message | Refused = msgspec.json.decode(self.receive_bytes(), type=kind | Refused)
        return found

    def send_bytes(self, data: bytes) -> None:
        self._socket.settimeout(SEND_TIMEOUT_S)
        self._socket.sendall(len(data).to_bytes(SIZE_BYTES, "little") + data)

    def receive_bytes(self) -> bytearray:
        self._socket.settimeout(self._patience)
        size = int.from_bytes(self._receive(SIZE_BYTES), "little")
        if size > MAX_BYTES:
            raise EOFError(f"a message has {size} bytes")
        return self._receive(size)

    def close(self) -> None:
        self._socket.close()

    def _receive(self, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            count = self._socket.recv_into(view)
            if not count:
                raise EOFError
            view = view[count:]
        return data
