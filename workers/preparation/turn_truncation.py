"""Dropping of the oldest turns of a chat that does not fit the context, as OpenAI's truncation `auto` does.

System messages, the last turn of the user and what follows the last answer stay. The result of a call goes with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from shared.errors import ContextLengthExceeded
from shared.protocol import Message

Encode = Callable[[Sequence[Message]], list[int]]


def encode_newest(messages: Sequence[Message], encode: Encode, room: int) -> list[int]:
    """Return the token ids of the messages without as few of the oldest turns as leave at most `room` tokens.

    Messages that do not fit even then are encoded without all that can be dropped.

    Args:
        encode: may raise ContextLengthExceeded.
    """
    groups = droppable(messages)
    low, high = 0, len(groups)  # to drop: too few below `low`, enough from `high` on, if any number is
    found: list[int] | None = None
    while low < high:
        number = (low + high) // 2 if low else 0  # most chats fit as they are
        ids = _encoded(_without(messages, groups[:number]), encode)
        if ids is not None and len(ids) <= room:
            found, high = ids, number
        else:
            low = number + 1
    return encode(_without(messages, groups)) if found is None else found


def droppable(messages: Sequence[Message]) -> list[range]:
    """Return the places of messages that can be dropped together, the oldest first.

    Before the user's last turn, they are an exchange, from one user's message to the next, so that the roles still
    alternate, as many chat templates require. After it, they are an answer with the results of its calls.
    """
    users = [i for i, message in enumerate(messages) if message.role == "user"]
    last = users[-1] if users else -1
    after = [i for i in range(last + 1, len(messages)) if messages[i].role == "assistant"]
    first = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    before = sorted({first, *users[:-1]}) if first < last else []
    return [range(*pair) for pair in (*pairwise([*before, last]), *pairwise(after))]


def _without(messages: Sequence[Message], groups: Sequence[range]) -> Sequence[Message]:
    """Return the messages outside the groups, and the system messages in them; no result without its call."""
    dropped = {i for group in groups for i in group}
    kept = [message for i, message in enumerate(messages) if i not in dropped or message.role == "system"]
    called = {call.id for message in kept for call in message.tool_calls}
    return [message for message in kept if message.tool_call_id is None or message.tool_call_id in called]


def _encoded(messages: Sequence[Message], encode: Encode) -> list[int] | None:
    """Return the token ids; None for messages that are certain not to fit."""
    try:
        return encode(messages)
    except ContextLengthExceeded:
        return None
