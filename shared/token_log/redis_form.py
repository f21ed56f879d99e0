"""Form of a request and its log in Redis: entries, the fields of the state, token ids."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import msgspec

from shared.numbers import finite
from shared.protocol import AdapterRef, PriorityClass, Request, RequestState, TokenEvent, decode_event
from shared.token_log.interface import RequestRecord, Unfinished

_decode_adapter = msgspec.json.Decoder(AdapterRef).decode


def decode_entry(fields: Sequence[bytes]) -> TokenEvent:
    """Decode an entry. Raises UNREADABLE."""
    name, data = fields
    if name != b"e":
        raise ValueError("not an entry of a token log")
    return decode_event(data)


def is_whole(events: Sequence[TokenEvent], next_seq: int) -> bool:
    """Return whether the events cover each seq below `next_seq`."""
    seq = 0
    for event in events:
        if event.seq != seq:
            return False
        seq = event.last_seq + 1
    return seq == next_seq


def request_fields(request: Request) -> list[str]:
    """Return the fields of the state that come from the request, as field, value …"""
    fields = {
        "model": request.model,
        "tenant": request.tenant,
        "priority": request.priority.value,
        "created_at": f"{request.created_at:.6f}",
    }
    if request.deadline is not None:
        fields["deadline"] = f"{request.deadline:.6f}"
    if request.adapter is not None:
        fields["adapter"] = msgspec.json.encode(request.adapter).decode()
    return [part for pair in fields.items() for part in pair]


def pack_ids(prompt: Sequence[int]) -> bytes:
    """Encode token ids in two or four little-endian bytes each, after a letter that says which."""
    if not prompt:
        return b""
    letter = "H" if max(prompt) < 2**16 else "I"
    return letter.encode() + struct.pack(f"<{len(prompt)}{letter}", *prompt)


def unpack_ids(data: bytes) -> tuple[int, ...]:
    """Decode what `pack_ids` has encoded."""
    letter, ids = data[:1].decode(), data[1:]
    return struct.unpack(f"<{len(ids) // struct.calcsize('<' + letter)}{letter}", ids) if letter else ()


def as_text(data: bytes) -> msgspec.Raw:
    """Return bytes as a text of MessagePack: `cmsgpack` has no type for bytes, and Lua's texts have no encoding."""
    return msgspec.Raw(struct.pack(">BI", 0xDB, len(data)) + data)


def to_fields(reply: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return a hash from a script's reply: field, value …"""
    parts = iter(reply)
    return dict(zip(parts, parts, strict=True))


def to_record(job_id: str, fields: Mapping[bytes, bytes]) -> RequestRecord:
    """Return the record that a state hash holds."""
    state = RequestState(fields[b"state"].decode())

    def time(name: bytes) -> float | None:
        return finite(fields[name].decode()) if name in fields else None

    return RequestRecord(
        id=job_id,
        model=fields[b"model"].decode(),
        tenant=fields[b"tenant"].decode(),
        priority=PriorityClass(fields[b"priority"].decode()),
        state=state,
        created_at=finite(fields[b"created_at"].decode()),
        started_at=time(b"started_at"),
        first_token_at=time(b"first_token_at"),
        finished_at=time(b"finished_at"),
        deadline=time(b"deadline"),
        prompt_tokens=int(fields.get(b"prompt_tokens", 0)),
        completion_tokens=int(fields[b"seq"]) - state.terminal,
        source=fields.get(b"source", b"").decode(),
        finish=fields.get(b"finish", b"").decode(),
        adapter=_decode_adapter(fields[b"adapter"]) if b"adapter" in fields else None,
    )


def to_unfinished(found: tuple[str, Sequence[bytes | None]]) -> Unfinished:
    """Return the request of an id and its state, model, time of creation and source. Raises ValueError."""
    job_id, (state, model, created_at, source) = found
    if state is None or model is None or created_at is None:
        raise ValueError("not the state of a request")
    created = finite(created_at.decode())
    return Unfinished(job_id, RequestState(state.decode()), model.decode(), created, (source or b"").decode())
