"""Drafter that finds the last tokens of an answer earlier in its prompt or in itself, and proposes what followed.

It serves answers that repeat their prompt: edits, summaries, quotations. Reference: prompt lookup decoding,
https://github.com/apoorvumang/prompt-lookup-decoding.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

from workers.engine.sequence import Sequence
from workers.engine.speculation.interface import Draft

NGRAM_SIZES = (8, 5, 3, 2, 1)  # the longest one that is found decides
MAX_INDEXED_TOKENS = 32_768  # of one sequence; later tokens find the earlier ones, but are not found


class NgramIndex:
    """Index of the last occurrence of each n-gram of a growing list of tokens, before its end."""

    def __init__(self) -> None:
        self._after: dict[int, dict[tuple[int, ...], int]] = {size: {} for size in NGRAM_SIZES}
        self._indexed = 1  # places up to here, exclusive, may be found as the next token of an n-gram

    def update(self, tokens: list[int]) -> None:
        """Index the tokens that were appended since the last call, up to MAX_INDEXED_TOKENS in all."""
        end = min(len(tokens), MAX_INDEXED_TOKENS)
        for size, after in self._after.items():
            first = max(self._indexed, size)
            if first < end:
                part = tokens[first - size : end - 1]
                ngrams = zip(*(part[i:] for i in range(size)), strict=False)
                after.update(zip(ngrams, range(first, end), strict=True))
        self._indexed = max(self._indexed, end)

    def find(self, tokens: list[int]) -> tuple[int, int] | None:
        """Return the size of the longest last n-gram that occurred earlier, and the place after it."""
        for size, after in self._after.items():
            place = after.get(tuple(tokens[-size:]))
            if place is not None:
                return size, place
        return None


class NgramDrafter:
    """Drafter by n-grams of prompt and answer; see `Drafter`."""

    name = "ngram"

    def __init__(self) -> None:
        self._indexes: WeakKeyDictionary[Sequence, NgramIndex] = WeakKeyDictionary()

    def propose(self, sequence: Sequence, most: int) -> Draft | None:
        index = self._indexes.get(sequence)
        if index is None:
            index = self._indexes[sequence] = NgramIndex()
        index.update(sequence.tokens)
        found = index.find(sequence.tokens)
        if found is None:
            return None
        size, place = found
        period = len(sequence.tokens) - place
        seen = sequence.tokens[place : place + most]
        drafted = tuple(seen[i % period] for i in range(most))  # a draft that reaches the end goes on with itself
        return Draft(f"{self.name}-{size}", drafted)

    def remember(self, sequence: Sequence) -> None:
        """Do nothing: an index serves one answer."""
