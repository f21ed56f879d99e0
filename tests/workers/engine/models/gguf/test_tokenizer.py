"""Vocabularies of SentencePiece in GGUF files cut texts as llama.cpp does, by the scores of their pieces."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import gguf
import pytest

from workers.engine.models.gguf.tokenizer import SPACE, load_tokenizer

MARKS = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = [SPACE, *"abcdeé"]
UNKNOWN, CONTROL, NORMAL, BYTE = 2, 3, 1, 6


def pieces() -> list[str]:
    """Return letters and random pieces of two parts each, the best first."""
    rng, found = random.Random(5), list(LETTERS)
    while len(found) < 60:
        piece = rng.choice(found) + rng.choice(found)
        if piece not in found:
            found.append(piece)
    merged = found[len(LETTERS) :]
    rng.shuffle(merged)
    return [*merged, *LETTERS]


def write(path: Path, architecture: str, *, prefix: bool) -> list[str]:
    """Write a file without tensors. Return its tokens."""
    tokens = [*MARKS, *BYTES, *pieces()]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(index) for index in range(len(tokens))])
    kinds = [UNKNOWN, CONTROL, CONTROL, *([BYTE] * len(BYTES))]
    writer.add_token_types([*kinds, *([NORMAL] * (len(tokens) - len(kinds)))])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_space_prefix(prefix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return tokens


def cut(text: str, tokens: list[str]) -> list[int]:
    """Return the tokens of a text as llama.cpp finds them: it joins the best pair of neighbours again and again."""
    places = {token: index for index, token in enumerate(tokens)}
    symbols = list(text)
    while pairs := [(places[a + b], at) for at, (a, b) in enumerate(pairwise(symbols)) if a + b in places]:
        at = min(pairs)[1]
        symbols[at : at + 2] = ["".join(symbols[at : at + 2])]
    by_bytes = [[symbol] if symbol in places else [BYTES[byte] for byte in symbol.encode()] for symbol in symbols]
    return [places[token] for parts in by_bytes for token in parts]


@pytest.mark.parametrize(
    ("architecture", "prefix"), [("llama", True), ("mistral3", False), ("gemma", False), ("gemma3", False)]
)
def test_texts_are_cut_by_the_scores_of_pieces(tmp_path: Path, architecture: str, prefix: bool) -> None:
    tokens = write(tmp_path / "tiny.gguf", architecture, prefix=prefix)
    tokenizer = load_tokenizer(tmp_path / "tiny.gguf")
    rng = random.Random(1)
    texts = ["", " ", "  a", "a\n\nb ", "ß🙂a", "abc" * 30]
    texts += ["".join(rng.choices("abcdeé  x\n", k=rng.randint(1, 40))) for _ in range(200)]
    for text in texts:
        spelled = text.replace(" ", SPACE)
        expected = cut(SPACE + spelled if prefix and spelled else spelled, tokens)
        assert tokenizer.encode(text) == [1, *expected], repr(text)
        assert tokenizer.decode(expected).lstrip(" ") == text.lstrip(" ")
