"""Frames between a worker and the process of a predictor."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest

from workers.predictors.interface import NUMPY_TYPES, Array
from workers.predictors.process.frames import MAX_HEADER_BYTES, FrameSocket, InvalidFrame
from workers.predictors.process.messages import Ended, Execute, Outputs

Ends = tuple[socket.socket, FrameSocket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, FrameSocket(theirs)


@pytest.mark.parametrize("kind", NUMPY_TYPES)
def test_arrays_arrive_as_they_were_sent(ends: Ends, kind: str) -> None:
    shape = (2, 3)
    array = np.arange(6).reshape(shape).astype(NUMPY_TYPES[kind])
    if kind == "BYTES":
        array = np.array([[b"a", b"", b"\x00"], ["ö".encode(), b"b", b"c"]], dtype=object)
    scalar: Array = array[1, 1:2].reshape(())
    message = Execute(outputs=("y",), parameters={"k": 1}, stream=False)
    FrameSocket(ends[0]).send(message, {"x": array, "transposed": array.T, "scalar": scalar})
    found, arrays = ends[1].receive()
    assert found == message
    assert [*arrays] == ["x", "transposed", "scalar"]
    for name, sent in (("x", array), ("transposed", array.T), ("scalar", scalar)):
        assert arrays[name].dtype == sent.dtype
        assert np.array_equal(arrays[name], sent)
        assert arrays[name].flags.writeable


def test_big_endian_arrays_are_converted(ends: Ends) -> None:
    FrameSocket(ends[0]).send(Outputs(), {"x": np.array([1, 2], ">i4")})
    assert ends[1].receive()[1]["x"].tolist() == [1, 2]


def test_other_types_are_not_sent(ends: Ends) -> None:
    with pytest.raises(TypeError, match="x has items of the unsupported type complex64"):
        FrameSocket(ends[0]).send(Outputs(), {"x": np.zeros(1, "c8")})
    with pytest.raises(TypeError, match="an item of BYTES must be bytes or a text, not dict"):
        FrameSocket(ends[0]).send(Outputs(), {"x": np.array([{}], dtype=object)})


def frame(arrays: list[object], data: bytes = b"", message: object = ("ended",)) -> bytes:
    header = msgspec.msgpack.encode([{"type": "ended"} if message == ("ended",) else message, arrays])
    return len(header).to_bytes(4, "little") + header + data


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ((MAX_HEADER_BYTES + 1).to_bytes(4, "little"), "a header has"),
        (frame([], message={"type": "other"}), "Invalid value 'other'"),
        ((3).to_bytes(4, "little") + b"abc", "."),
        (frame([["x", "<f4", [2], 4]], b"1234"), "array x: cannot reshape"),
        (frame([["x", "<f4", [1], 3]], b"123"), "array x: buffer size must be a multiple"),
        (frame([["x", "<c8", [1], 8]]), "array x has the type <c8"),
        (frame([["x", "<f4", [1], -4]]), "array x has the type <f4 and -4 bytes"),
        (frame([["x", "<f4", [1], 1 << 40]]), "array x has the type"),
        (frame([["x", "O", [1], 5]], b"\x02\0\0\0a"), "array x: the last item of BYTES is incomplete"),
    ],
)
def test_invalid_frames_are_refused(ends: Ends, sent: bytes, reason: str) -> None:
    ends[0].sendall(sent)
    with pytest.raises(InvalidFrame, match=reason):
        ends[1].receive()


def test_end_and_silence_are_reported(ends: Ends) -> None:
    with pytest.raises(TimeoutError):
        ends[1].receive(lambda: 0.001)
    ends[0].sendall(frame([])[:5])
    ends[0].close()
    with pytest.raises(EOFError):
        ends[1].receive()


def test_header_is_one_of_the_messages(ends: Ends) -> None:
    ends[0].sendall(frame([]))
    assert ends[1].receive() == (Ended(), {})
