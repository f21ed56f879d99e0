"""Drafter from the earlier answers of the same tenant, and of the same `cache_salt` within it.

Reference: SuffixDecoding, https://arxiv.org/abs/2411.04975.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from workers.engine.sequence import Sequence
from workers.engine.speculation.interface import Draft
from workers.engine.speculation.suffix_automaton import ROOT, SuffixAutomaton

MAX_TOKENS = 65_536  # of all tenants; they take some 50 MB
MAX_TENANT_TOKENS = 16_384
MIN_ANSWER_TOKENS = 4  # shorter answers are not kept
MAX_REMATCHED_TOKENS = 32  # of an answer, after older answers were dropped
BEGIN, END = -1, -2  # around each answer; no token has these ids
MAX_LENGTH_CLASS = 4  # longer matches are about as often right


@dataclass
class Answers:
    """Answers of one tenant: the last ones, and those before, which are dropped when the last ones are many."""

    last: SuffixAutomaton = field(default_factory=SuffixAutomaton)
    before: SuffixAutomaton = field(default_factory=SuffixAutomaton)

    @property
    def num_tokens(self) -> int:
        return len(self.last.tokens) + len(self.before.tokens)

    def append(self, answer: list[int]) -> None:
        if len(self.last.tokens) + len(answer) > MAX_TENANT_TOKENS // 2:
            self.before, self.last = self.last, SuffixAutomaton()
        for token in (BEGIN, *answer, END):
            self.last.append(token)


@dataclass
class Match:
    """Longest end of one answer that occurs in `answers`, after its first `num_tokens` tokens."""

    answers: SuffixAutomaton
    num_tokens: int
    state: int = ROOT
    length: int = 0

    def follow(self, sequence: Sequence) -> None:
        """Follow the answer to its last token."""
        if self.num_tokens == sequence.num_prompt_tokens:
            self.state, self.length = self.answers.advance(ROOT, 0, BEGIN)
        for token in sequence.tokens[self.num_tokens :]:
            self.state, self.length = self.answers.advance(self.state, self.length, token)
        self.num_tokens = sequence.num_tokens


class EarlierAnswers:
    """Drafter from earlier answers; see `Drafter`. The least recently used tenants are dropped first."""

    name = "answers"

    def __init__(self) -> None:
        self._tenants: OrderedDict[bytes, Answers] = OrderedDict()  # by salt
        self._matches: WeakKeyDictionary[Sequence, list[Match]] = WeakKeyDictionary()
        self.num_tokens = 0

    def propose(self, sequence: Sequence, most: int) -> Draft | None:
        answers = self._tenants.get(sequence.prefix_salt)
        if answers is None:
            return None
        self._tenants.move_to_end(sequence.prefix_salt)
        matches = self._matches_of(sequence, answers)
        for match in matches:
            match.follow(sequence)
        best = max(matches, key=lambda match: match.length)
        if not best.length:
            return None
        drafted = best.answers.following(best.state, most)
        if END in drafted:
            drafted = drafted[: drafted.index(END)]
        kind = f"{self.name}-{min(best.length.bit_length(), MAX_LENGTH_CLASS)}"
        return Draft(kind, tuple(drafted)) if drafted else None

    def remember(self, sequence: Sequence) -> None:
        """Keep the answer for the tenant's next requests."""
        answer = sequence.tokens[sequence.num_prompt_tokens :][: MAX_TENANT_TOKENS // 4]
        if len(answer) < MIN_ANSWER_TOKENS:
            return
        answers = self._tenants.setdefault(sequence.prefix_salt, Answers())
        self._tenants.move_to_end(sequence.prefix_salt)
        self.num_tokens -= answers.num_tokens
        answers.append(answer)
        self.num_tokens += answers.num_tokens
        while self.num_tokens > MAX_TOKENS:
            _, dropped = self._tenants.popitem(last=False)
            self.num_tokens -= dropped.num_tokens

    def _matches_of(self, sequence: Sequence, answers: Answers) -> list[Match]:
        """Return the answer's matches in the tenant's answers as they are now."""
        current = (answers.last, answers.before)
        matches = self._matches.get(sequence, [])
        if tuple(match.answers for match in matches) != current:
            start = max(sequence.num_prompt_tokens, sequence.num_tokens - MAX_REMATCHED_TOKENS)
            matches = self._matches[sequence] = [Match(automaton, start) for automaton in current]
        return matches
