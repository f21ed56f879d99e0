"""Events of jobs and chats, as the bytes of server-sent events."""

from __future__ import annotations

import json


def token(seq: int, count: int = 1) -> bytes:
    return b'id: %d\nevent: token\ndata: {"seq": %d}\n\n' % (seq + count - 1, seq)


def done(seq: int) -> bytes:
    return b'id: %d\nevent: done\ndata: {"seq": %d}\n\n' % (seq, seq)


def chunk(text: str, seq: int | None = None) -> bytes:
    data = json.dumps({"id": "chatcmpl-1", "choices": [{"delta": {"content": text}}]})
    return (b"" if seq is None else b"id: %d\n" % seq) + b"data: %b\n\n" % data.encode()
