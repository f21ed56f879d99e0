"""Comparison of two recordings of one request: the first token that differs, and why it may."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from shared.errors import InvalidRequest

MAX_SHOWN_CHARS = 16  # of a value of the computation; hashes are longer
FIELDS: Mapping[str, type] = {
    "request": dict,
    "prompt_token_ids": list,
    "choices": list,
    "fingerprint": str,
    "computation": dict,
    "runs": int,
}
CHOICE_FIELDS: Mapping[str, type] = {"index": int, "token_ids": list, "texts": list}
Recording = Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """A token of an answer; `id` is None, and `text` empty, after the answer's end."""

    id: int | None
    text: str


@dataclass(frozen=True)
class Difference:
    """The first difference of a choice."""

    choice: int
    position: int
    logged: Place
    computed: Place


@dataclass(frozen=True)
class Verdict:
    """Result of a verification.

    Attributes:
        tokens: number of tokens of the logged answer, over all choices.
        difference: None if all tokens and ends are the same.
        reasons: differences between the computations, and what else may explain another answer.
    """

    tokens: int
    difference: Difference | None
    reasons: tuple[str, ...]

    @property
    def same(self) -> bool:
        return self.difference is None


def checked(value: Any, source: str) -> Recording:
    """Return a value from a file or a server, if it is a recording. Raises InvalidRequest that names the source."""
    valid = isinstance(value, dict) and _has(value, FIELDS) and _all(int, value["prompt_token_ids"])
    if not (valid and all(_is_choice(choice) for choice in value["choices"]) and _are_distinct(value["choices"])):
        raise InvalidRequest(f"{source} must hold a recording, as `headrace verify --save` writes it")
    recording: Recording = value
    return recording


def compare(logged: Recording, computed: Recording) -> Verdict:
    """Compare the answers of two runs of one request."""
    tokens = sum(len(choice["token_ids"]) for choice in logged["choices"])
    difference = _first_difference(logged, computed)
    return Verdict(tokens, difference, _reasons(logged, computed, differs=difference is not None))


def _has(value: dict[str, Any], fields: Mapping[str, type]) -> bool:
    return all(isinstance(value.get(name), kind) for name, kind in fields.items())


def _all(kind: type, values: list[Any]) -> bool:
    return all(type(value) is kind for value in values)


def _is_choice(value: Any) -> bool:
    if not (isinstance(value, dict) and _has(value, CHOICE_FIELDS)):
        return False
    ids, texts = value["token_ids"], value["texts"]
    return len(ids) == len(texts) and _all(int, ids) and _all(str, texts)


def _are_distinct(choices: list[dict[str, Any]]) -> bool:
    return len({choice["index"] for choice in choices}) == len(choices)


def _first_difference(logged: Recording, computed: Recording) -> Difference | None:
    """Return the first difference, by choice. An end is compared as a token after the last."""
    answers = [{choice["index"]: choice for choice in each["choices"]} for each in (logged, computed)]
    for index in sorted(answers[0].keys() | answers[1].keys()):
        left, right = (_places(answer.get(index)) for answer in answers)
        for position, (one, other) in enumerate(zip_longest(left, right, fillvalue=Place(None, ""))):
            if one.id != other.id or (one.id is None and one != other):
                return Difference(index, position, one, other)
    return None


def _places(choice: Mapping[str, Any] | None) -> list[Place]:
    if choice is None:
        return []
    ids, texts = choice["token_ids"], choice["texts"]
    return [*(Place(*pair) for pair in zip(ids, texts, strict=True)), Place(None, str(choice.get("finish_reason")))]


def _reasons(logged: Recording, computed: Recording, *, differs: bool) -> tuple[str, ...]:
    before, now = logged["computation"], computed["computation"]
    found = [
        f"{name}: {_shown(before.get(name))} then, {_shown(now.get(name))} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if not found and logged["fingerprint"] != computed["fingerprint"]:
        found.append(f"fingerprint: {logged['fingerprint']} then, {computed['fingerprint']} now")
    if logged["prompt_token_ids"] != computed["prompt_token_ids"]:
        found.append("the token ids of the prompt differ")
    if differs and max(logged["runs"], computed["runs"]) > 1:
        found.append("several workers ran the request in turn; with mixed_workers = allow, they may have differed")
    if differs and not found and not {"vectors", "machine"} & now.keys():
        found.append("on this device, answers depend on their batch unless batch_invariant is set")
    return tuple(found)


def _shown(value: object) -> str:
    """Return a value, cut; a part of a hash is enough to see that it differs."""
    if value is None:
        return "unknown"
    return " ".join(part if len(part) <= MAX_SHOWN_CHARS else f"{part[:8]}…" for part in str(value).split())
