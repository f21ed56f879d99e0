"""Incremental parser that separates the reasoning of a choice from its content.

The state depends only on the prompt and the tokens so far, so feeding the logged tokens again restores it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import Enum, auto
from itertools import pairwise

from workers.engine.text.reasoning_format import ReasoningFormat, Stage


class _Part(Enum):
    """Part of the answer that a stretch of text belongs to."""

    REASONING = auto()
    CONTENT = auto()
    NEITHER = auto()


class ReasoningParser:
    """Reasoning parser of one choice.

    Tags are found by their tokens, and text is separated by its position: it may become visible later than its
    token, while it may be half a character or the beginning of a stop string.

    Args:
        prompt, turn_ends: see `ReasoningFormat.stage_after`.
        tag_lengths: number of characters of the start and the end tag in the visible text; 0 if they are hidden.
        budget: most tokens of reasoning; then its end is forced. None for no limit.
        separates: False to leave the text as it is, with the tags.
        trims_content: remove the space between reasoning and content.

    Attributes:
        stage: the stage after the tokens so far.
        num_tokens: tokens of reasoning so far, without tags and forced tokens.
        in_reasoning: True if the last token was one of these, and reasoning is separated.
    """

    def __init__(
        self,
        form: ReasoningFormat,
        prompt: Sequence[int],
        turn_ends: frozenset[int],
        *,
        tag_lengths: tuple[int, int],
        budget: int | None = None,
        separates: bool = True,
        trims_content: bool = True,
    ) -> None:
        self.stage = form.stage_after(prompt, turn_ends)
        self.in_reasoning = False
        self.num_tokens = 0
        self._form = form
        self._start_length, self._end_length = tag_lengths
        self._budget = budget
        self._separates = separates
        self._num_forced = 0
        reasons = self.stage is Stage.REASONING
        self._parts = [(0, _Part.REASONING if reasons else _Part.CONTENT)]  # each from a position in the text
        self._settled = 0
        self._buffer = ""
        self._position = 0  # of the buffer's first character
        self._reasoning_space: str | None = None  # after the reasoning, which drops it at its end; None before it
        self._trims_content = trims_content
        self._trims_next = trims_content and reasons

    @property
    def thinking(self) -> bool:
        """True from the beginning of the reasoning until it is closed."""
        return self.stage in (Stage.REASONING, Stage.CLOSING)

    @property
    def start_id(self) -> int:
        """The token that begins reasoning."""
        return self._form.start_id

    @property
    def forced_token(self) -> int | None:
        """The token that must come next because the budget is spent; None if any may."""
        spent = self.stage is Stage.REASONING and self._budget is not None and self.num_tokens >= self._budget
        return self._form.closing[self._num_forced] if spent or self.stage is Stage.CLOSING else None

    def feed(self, token_id: int, text: str, settled: int, *, last: bool) -> tuple[str, str]:
        """Add a token. Return the additions to reasoning and content.

        Args:
            text: the text that became visible with it.
            settled: number of characters of all tokens so far, visible or not.
            last: the answer ends with this token.
        """
        self._advance(token_id, settled)
        self._settled = settled
        if not self._separates:
            self.in_reasoning = False
            return "", text
        self._buffer += text
        if self.stage is Stage.UNDECIDED and not last:  # space: it is dropped if reasoning follows
            return "", ""
        return self._split()

    def _advance(self, token_id: int, settled: int) -> None:
        """Move to the stage after a token."""
        forced = token_id == self.forced_token
        self._num_forced += forced
        closed = self._num_forced == len(self._form.closing)
        self.in_reasoning = self.stage is Stage.REASONING and token_id != self._form.end_id and not forced
        self.num_tokens += self.in_reasoning
        match self.stage:
            case _ if token_id == self._form.end_id:  # in content, it is repeated
                self._omit(self._end_length, settled, _Part.CONTENT)
                self.stage = Stage.CLOSING if forced and not closed else Stage.CONTENT
            case Stage.UNDECIDED if token_id == self._form.start_id:
                self.stage, self._trims_next = Stage.REASONING, self._trims_content
                self._parts = [(0, _Part.NEITHER), (settled, _Part.REASONING)]
            case Stage.UNDECIDED if self._form.token_text(token_id).strip():
                self.stage = Stage.CONTENT
            case Stage.REASONING if token_id == self._form.start_id:  # repeated
                self._omit(self._start_length, settled, _Part.REASONING)
            case Stage.CLOSING:
                self._omit(settled - self._settled, settled, _Part.CONTENT)
                self.stage = Stage.CLOSING if forced and not closed else Stage.CONTENT

    def _omit(self, length: int, settled: int, then: _Part) -> None:
        """Leave out the token's last characters; the text after them belongs to `then`."""
        start = settled - min(length, settled - self._settled)
        self._parts += [(start, _Part.NEITHER), (settled, then)]

    def _split(self) -> tuple[str, str]:
        """Empty the buffer. Return its reasoning and its content."""
        found = dict.fromkeys(_Part, "")
        for (start, part), (end, _) in pairwise([*self._parts, (sys.maxsize, _Part.NEITHER)]):
            found[part] += self._buffer[max(start - self._position, 0) : max(end - self._position, 0)]
        self._position += len(self._buffer)
        self._buffer = ""
        while len(self._parts) > 1 and self._parts[1][0] <= self._position:
            del self._parts[0]
        return self._trimmed_reasoning(found[_Part.REASONING]), self._trimmed_content(found[_Part.CONTENT])

    def _trimmed_reasoning(self, text: str) -> str:
        """Return more of the reasoning, without the space around all of it."""
        text = text.lstrip() if self._reasoning_space is None else self._reasoning_space + text
        kept = text.rstrip()
        if kept or self._reasoning_space is not None:
            self._reasoning_space = text[len(kept) :]
        return kept

    def _trimmed_content(self, text: str) -> str:
        """Return more of the content, without the space between it and the reasoning."""
        if self._trims_next and text:
            text = text.lstrip()
            self._trims_next = not text
        return text
