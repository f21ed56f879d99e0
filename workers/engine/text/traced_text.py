"""Text that records which of its characters a chat template wrote itself.

A chat template mixes its own markup with text from callers. Only the markup may become control tokens, so every
string of a template is a `Traced` one, and text from callers stays a plain `str`. Operations that are not covered
here return a plain `str`, which counts as text from a caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, SupportsIndex

_TRUSTED = b"\x01"
_new = str.__new__


class Traced(str):
    """Text with a mask: 1 for each character of the template, 0 for each character from elsewhere."""

    __slots__ = ("_mask",)
    _mask: bytes

    def __new__(cls, text: str = "", mask: bytes | None = None) -> Traced:
        made = str.__new__(cls, text)
        made._mask = bytes(len(made)) if mask is None else mask
        return made

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> str:  # templates do little else: it takes half the time without `__new__`
        kind = type(other)
        if kind is str:
            mask = self._mask + bytes(len(other))
        elif kind is Traced:
            mask = self._mask + other._mask  # type: ignore[attr-defined]
        else:  # markupsafe.Markup escapes what it is added to
            return NotImplemented
        made = _new(Traced, str.__add__(self, other))
        made._mask = mask
        return made

    def __radd__(self, other: str) -> str:
        if type(other) is not str:
            return NotImplemented
        return Traced(str.__add__(other, self), bytes(len(other)) + self._mask)

    def __mul__(self, count: SupportsIndex) -> str:
        return Traced(str.__mul__(self, count), self._mask * count)

    __rmul__ = __mul__

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        if isinstance(key, slice):
            return Traced(str.__getitem__(self, key), self._mask[key])
        return Traced(str.__getitem__(self, key), bytes([self._mask[key]]))

    def __mod__(self, values: Any) -> str:
        return of_one_origin(str.__mod__(self, values), self, *(values if isinstance(values, tuple) else (values,)))

    def join(self, parts: Iterable[str]) -> str:
        parts = list(parts)
        return Traced(str.join(self, parts), self._mask.join(map(mask_of, parts)))

    def lstrip(self, chars: str | None = None) -> str:
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars: str | None = None) -> str:
        return self[: len(str.rstrip(self, chars))]

    def strip(self, chars: str | None = None) -> str:
        return self[: len(str.rstrip(self, chars))].lstrip(chars)

    def removeprefix(self, prefix: str) -> str:
        return self[len(self) - len(str.removeprefix(self, prefix)) :]

    def removesuffix(self, suffix: str) -> str:
        return self[: len(str.removesuffix(self, suffix))]

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> str:
        return of_one_origin(str.replace(self, old, new, count), self, old, new)

    def upper(self) -> str:
        return self._recased(str.upper)

    def lower(self) -> str:
        return self._recased(str.lower)

    def title(self) -> str:
        return self._recased(str.title)

    def capitalize(self) -> str:
        return self._recased(str.capitalize)

    def _recased(self, recase: Callable[[str], str]) -> str:
        text = recase(self)
        return Traced(text, self._mask) if len(text) == len(self) else text


def trusted(text: str) -> Traced:
    """Return text of a template."""
    return Traced(text, _TRUSTED * len(text))


def mask_of(text: str) -> bytes:
    """Return 1 for each character that a template wrote itself, and 0 for each other."""
    return text._mask if type(text) is Traced else bytes(len(text))


def plain(text: str) -> str:
    """Return a text without its mask."""
    return str.__getitem__(text, slice(None))


def concat(parts: Iterable[str]) -> Traced:
    """Join the parts of a rendered template."""
    parts = list(parts)
    return Traced("".join(parts), b"".join(map(mask_of, parts)))


def of_one_origin(text: str, *sources: Any) -> str:
    """Return the text, trusted if each of its sources is trusted as a whole."""
    return trusted(text) if all(type(each) is Traced and 0 not in each._mask for each in sources) else text
