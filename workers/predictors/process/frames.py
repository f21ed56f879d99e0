"""Frames with a message and arrays, over a stream socket.

A frame is the size of its header (4 bytes, little-endian), the header (MessagePack), and the arrays' data one after
the other. The header has the message and, for each array, its name, type, shape and size in bytes.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import msgspec
import numpy as np

from workers.predictors.interface import NUMPY_TYPES, Array, Arrays
from workers.predictors.process.messages import Message
from workers.predictors.tensors.arrays import read_items, to_tensor

SIZE_BYTES = 4
MAX_HEADER_BYTES = 1 << 24
MAX_ARRAY_BYTES = 1 << 34  # the sizes come from a process that may have overwritten its own memory
OBJECTS = "O"  # items of BYTES, each after its length
TYPES = {OBJECTS} | {each.str for each in NUMPY_TYPES.values() if each.kind != "O"}

Kind = TypeVar("Kind")
Remaining = Callable[[], float | None]  # seconds that the call may still take; None for any


class InvalidFrame(Exception):
    """The other side sent something else than a frame."""


class ArrayHeader(msgspec.Struct, frozen=True, array_like=True):
    """Description of an array in a frame."""

    name: str
    type: str
    shape: tuple[int, ...]
    size: int


class Header(msgspec.Struct, frozen=True, array_like=True):
    """Message and description of the arrays of a frame."""

    message: Message
    arrays: tuple[ArrayHeader, ...]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Header)


class FrameSocket:
    """One end of a socket pair. The calls raise OSError, EOFError, TimeoutError and InvalidFrame."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def send(self, message: Message, arrays: Arrays, remaining: Remaining = lambda: None) -> None:
        described = [_pack(name, array) for name, array in arrays.items()]
        header = _encoder.encode(Header(message, tuple(each for each, _ in described)))
        self._send(len(header).to_bytes(SIZE_BYTES, "little") + header, remaining)
        for _, data in described:
            self._send(data, remaining)

    def receive(self, remaining: Remaining = lambda: None) -> tuple[Message, dict[str, Array]]:
        size = int.from_bytes(self._receive(SIZE_BYTES, remaining), "little")
        if size > MAX_HEADER_BYTES:
            raise InvalidFrame(f"a header has {size} bytes")
        try:
            header = _decoder.decode(self._receive(size, remaining))
        except msgspec.DecodeError as error:
            raise InvalidFrame(str(error)) from error
        return header.message, {each.name: _unpack(each, self._body(each, remaining)) for each in header.arrays}

    def shut_down(self) -> None:
        """Let the calls of other threads end as if the other side had closed."""
        with suppress(OSError):  # closed
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()

    def _body(self, header: ArrayHeader, remaining: Remaining) -> bytearray:
        if header.type not in TYPES or not 0 <= header.size <= MAX_ARRAY_BYTES:
            raise InvalidFrame(f"array {header.name} has the type {header.type} and {header.size} bytes")
        return self._receive(header.size, remaining)

    def _send(self, data: bytes | memoryview, remaining: Remaining) -> None:
        self._socket.settimeout(remaining())
        self._socket.sendall(data)

    def _receive(self, size: int, remaining: Remaining) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            self._socket.settimeout(remaining())
            count = self._socket.recv_into(view)
            if not count:
                raise EOFError
            view = view[count:]
        return data


def _pack(name: str, array: Array) -> tuple[ArrayHeader, bytes | memoryview]:
    data: bytes | memoryview
    if array.dtype.kind in "OSU":
        kind, data = OBJECTS, to_tensor(name, "BYTES", array).data
    else:
        array = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
        kind, data = array.dtype.str, array.reshape(-1).view(np.uint8).data
    if kind not in TYPES:
        raise TypeError(f"{name} has items of the unsupported type {array.dtype}")
    return ArrayHeader(name, kind, array.shape, len(data)), data


def _unpack(header: ArrayHeader, data: bytearray) -> Array:
    """Return an array that may be written to. Raises InvalidFrame."""
    try:
        found = read_items("BYTES", bytes(data)) if header.type == OBJECTS else np.frombuffer(data, header.type)
        return found.reshape(header.shape)
    except ValueError as error:
        raise InvalidFrame(f"array {header.name}: {error}") from error
