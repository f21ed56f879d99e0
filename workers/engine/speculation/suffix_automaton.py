"""Suffix automaton: all parts of a growing list of tokens, each found in time proportional to its length.

It is the smallest form of a suffix tree, with at most two states for each token. Reference: Blumer et al., 1985,
https://doi.org/10.1016/0304-3975(85)90157-4.
"""

from __future__ import annotations

ROOT = 0
MAX_MOVED_ENDS = 32  # states whose last place one token moves; more only in text that repeats a few tokens


class SuffixAutomaton:
    """Parts of a list of tokens, with the last place of each.

    A match is a state and a length: the last `length` tokens of some text, which occur in the list.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._next: list[dict[int, int]] = []
        self._link: list[int] = []  # the state of the longest suffix that occurs elsewhere too
        self._length: list[int] = []  # of the state's longest part
        self._end: list[int] = []  # the place after the state's last occurrence
        self._last = self._add({}, -1, 0, 0)

    def append(self, token: int) -> None:
        self.tokens.append(token)
        end, state = len(self.tokens), self._last
        new = self._last = self._add({}, ROOT, self._length[state] + 1, end)
        while state >= 0 and token not in self._next[state]:
            self._next[state][token] = new
            state = self._link[state]
        if state >= 0:
            self._link[new] = self._state_of(state, token)
        state = self._link[new]
        for _ in range(MAX_MOVED_ENDS):
            if state == ROOT:
                break
            self._end[state] = end
            state = self._link[state]

    def advance(self, state: int, length: int, token: int) -> tuple[int, int]:
        """Return the longest match of a matched text that is followed by one more token."""
        while state != ROOT and token not in self._next[state]:
            state = self._link[state]
            length = self._length[state]
        following = self._next[state].get(token)
        return (ROOT, 0) if following is None else (following, length + 1)

    def following(self, state: int, most: int) -> list[int]:
        """Return up to `most` tokens after the last place of a match."""
        end = self._end[state]
        return self.tokens[end : end + most]

    def _state_of(self, state: int, token: int) -> int:
        """Return the state of the longest part of `state`, followed by `token`; it may have to be split off."""
        following = self._next[state][token]
        if self._length[following] == self._length[state] + 1:
            return following
        clone = self._add(
            dict(self._next[following]), self._link[following], self._length[state] + 1, self._end[following]
        )
        self._link[following] = clone
        while state >= 0 and self._next[state].get(token) == following:
            self._next[state][token] = clone
            state = self._link[state]
        return clone

    def _add(self, transitions: dict[int, int], link: int, length: int, end: int) -> int:
        self._next.append(transitions)
        self._link.append(link)
        self._length.append(length)
        self._end.append(end)
        return len(self._length) - 1
