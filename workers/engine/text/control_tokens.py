"""Encoding of a text in which only some spellings of control tokens are meant as such.

The tokenizer's own rules decide everything else: a second tokenizer shares its model and differs only in the
spelling of the control tokens, which no caller can guess. Each control token that is meant is respelled before the
text is encoded.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping
from functools import lru_cache
from sys import maxsize

from tokenizers import AddedToken, Tokenizer

from workers.engine.pair_form import PairForm

MAX_CACHED_RUNS = 1_024
Place = tuple[int, str]  # of a control token in a text: its start and its spelling


class ControlTokens:
    """The control tokens of one tokenizer.

    Args:
        ids: their ids, by spelling.
    """

    def __init__(self, tokenizer: Tokenizer, ids: Mapping[str, int]) -> None:
        self._tokenizer = tokenizer
        self._ids = ids
        self._all_ids = frozenset(ids.values())
        longest_first = sorted(ids, key=len, reverse=True)
        self._spelling = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._find = lru_cache(MAX_CACHED_RUNS)(self._find_all)  # a template's text is the same in each chat
        secret = secrets.token_hex(16)
        self._secret_spellings = {text: f"\ufdd0{secret}{index:09}\ufdd1" for text, index in ids.items()}
        self._respelled, self._original_ids = self._respell()
        self._before, self._after = added_around_text(tokenizer)

    def encode(self, text: str, mask: bytes, *, special: bool) -> list[int]:
        """Encode a text.

        Args:
            mask: 1 for each character that may be part of a control token, 0 for each other.
            special: add the special tokens that the tokenizer puts around a plain text.
        """
        before, after = (self._before, self._after) if special else ([], [])
        meant = [
            (run_start + start, spelling)
            for run_start, run_end in _runs(mask)
            for start, spelling in self._find(text[run_start:run_end])
        ]
        ids = encode_alone(self._tokenizer, text, special=special)
        meant_ids = [self._ids[spelling] for _, spelling in meant]
        if self._controls(ids) == self._controls(before) + meant_ids + self._controls(after):
            return ids
        return [*before, *self._encode_meant(text, meant), *after]

    def _encode_meant(self, text: str, meant: list[Place]) -> list[int]:
        """Encode a text whose only control tokens are `meant`, as far as the tokenizer finds them.

        A tokenizer may miss one, for instance if its normalizer puts a space before each text and each token.
        """
        while True:
            respelled, starts = self._respell_text(text, meant)
            [encoding] = self._respelled.encode_batch([respelled], add_special_tokens=False)
            ids = [self._original_ids.get(index, index) for index in encoding.ids]
            spans = [span for index, span in zip(ids, encoding.offsets, strict=True) if index in self._all_ids]
            found = [place for place, is_found in zip(meant, _covered(starts, spans), strict=True) if is_found]
            if len(found) == len(meant):
                return ids
            meant = found

    def _controls(self, ids: list[int]) -> list[int]:
        known = self._all_ids
        return [index for index in ids if index in known]

    def _find_all(self, run: str) -> list[Place]:
        return [(found.start(), found.group()) for found in self._spelling.finditer(run)]

    def _respell_text(self, text: str, meant: list[Place]) -> tuple[str, list[int]]:
        """Return a text with other spellings of the `meant` tokens, and their new starts."""
        parts: list[str] = []
        starts, done, length = [], 0, 0
        for start, spelling in meant:
            secret = self._secret_spellings[spelling]
            starts.append(length + start - done)
            parts += (text[done:start], secret)
            length = starts[-1] + len(secret)
            done = start + len(spelling)
        return "".join([*parts, text[done:]]), starts

    def _respell(self) -> tuple[Tokenizer, dict[int, int]]:
        """Return the second tokenizer, and the ids of the first's added tokens by those of the second."""
        made = _without_added_tokens(self._tokenizer)
        if any(index in encode_alone(made, text, special=False) for text, index in self._ids.items()):
            made = _without_added_tokens(_renamed(self._tokenizer, self._secret_spellings))
        added = sorted(self._tokenizer.get_added_tokens_decoder().items())
        spellings = [self._secret_spellings.get(token.content, token.content) for _, token in added]
        made.add_tokens([_respelled_token(token, text) for (_, token), text in zip(added, spellings, strict=True)])
        made_ids = {token.content: index for index, token in made.get_added_tokens_decoder().items()}
        return made, {made_ids[text]: index for (index, _), text in zip(added, spellings, strict=True)}


def _covered(places: list[int], spans: list[tuple[int, int]]) -> Iterator[bool]:
    """Yield for each place whether a span contains it. Both are in order."""
    rest = iter(spans)
    start, end = 0, 0
    for place in places:
        while end <= place:
            start, end = next(rest, (maxsize, maxsize))
        yield start <= place


def _runs(mask: bytes) -> Iterator[tuple[int, int]]:
    """Yield the start and the end of each run of ones."""
    end = 0
    while (start := mask.find(1, end)) >= 0:
        end = mask.find(0, start)
        if end < 0:
            end = len(mask)
        yield start, end


def control_ids(tokenizer: Tokenizer, markup: str) -> dict[str, int]:
    """Return the control tokens of a chat, by spelling: the special tokens, and others that its `markup` has.

    A tokenizer may have other added tokens, such as runs of spaces, which are ordinary text. This is the choice of
    transformers' `sanitize_control_tokens` too.
    """
    return {
        token.content: index
        for index, token in tokenizer.get_added_tokens_decoder().items()
        if token.special or (token.content in markup and not token.content.isspace())
    }


def encode_alone(tokenizer: Tokenizer, text: str, *, special: bool) -> list[int]:
    """Encode a text as a batch of one, because the library's `encode` does not release the GIL."""
    [encoding] = tokenizer.encode_batch_fast([text], add_special_tokens=special)
    ids: list[int] = encoding.ids
    return ids


def added_around_text(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the special tokens that a tokenizer puts before and after a plain text."""
    inner, whole = (encode_alone(tokenizer, "a", special=special) for special in (False, True))
    starts = [start for start in range(len(whole)) if whole[start : start + len(inner)] == inner]
    return (whole[: starts[0]], whole[starts[0] + len(inner) :]) if starts else ([], [])


def pair_form(tokenizer: Tokenizer) -> PairForm:
    """Return what a tokenizer puts around and between the two texts of a pair."""
    [encoding] = tokenizer.encode_batch([("a", "a")])
    texts, ids = encoding.sequence_ids, encoding.ids
    first, second = texts.index(0), texts.index(1)
    first_end, second_end = (len(texts) - texts[::-1].index(text) for text in (0, 1))
    typed = encoding.type_ids[second] == 1
    return PairForm(tuple(ids[:first]), tuple(ids[first_end:second]), tuple(ids[second_end:]), typed)


def _respelled_token(token: AddedToken, spelling: str) -> AddedToken:
    return AddedToken(
        spelling,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer that shares all parts but the added tokens."""
    made = Tokenizer(tokenizer.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if (value := getattr(tokenizer, part)) is not None:
            setattr(made, part, value)
    return made


def _renamed(tokenizer: Tokenizer, names: Mapping[str, str]) -> Tokenizer:
    """Return a copy whose model has other names for some entries.

    A Unigram or WordLevel model finds an entry in a text even if it is no added token.
    """
    described = json.loads(tokenizer.to_str())
    model = described["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(text, text): index for text, index in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(text, text), score] for text, score in model["vocab"]]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if "".join(merge) not in names]
    described["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(described))
