"""A completion between a prefix and a suffix gets the special tokens of the model's form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import CodeLlamaTokenizer

from shared.errors import InvalidRequest
from tests.support.chat_tokenizers import chat_tokenizer, save
from workers.engine.text.infilling import FORMS, InfillingForm
from workers.engine.text.tokenizer import Tokenizer

CODE_LLAMA = FORMS[3]
Load = Callable[..., Tokenizer]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Return a function that loads a tokenizer with the special tokens of a form."""

    def make(form: InfillingForm | None, **options: bool) -> Tokenizer:
        made = chat_tokenizer("byte level", "")
        made.backend_tokenizer.add_special_tokens(list(form.tokens) if form else [])
        return Tokenizer(save(made, tmp_path), **options)

    return make


@pytest.mark.parametrize("form", [form for form in FORMS if form != CODE_LLAMA], ids=lambda form: form.prefix)
def test_prefix_and_suffix_stand_in_the_models_form(load: Load, form: InfillingForm) -> None:
    tokenizer = load(form)
    prefix, suffix = "def f(", "):\n  the"
    text = f"{form.prefix}{prefix}{form.suffix}{suffix}{form.middle}"
    if form.suffix_first:
        text = f"{form.suffix}{suffix}{form.prefix}{prefix}"
    ids = tokenizer.encode_infilling(prefix, suffix, special=False)
    assert ids == tokenizer.encode(text, special=False)
    assert tokenizer.encode_infilling(prefix, suffix) == [*tokenizer.encode(""), *ids]


def test_a_model_without_a_form_refuses_a_suffix(load: Load) -> None:
    with pytest.raises(InvalidRequest, match="no fill-in-the-middle form") as refused:
        load(None).encode_infilling("a", "b")
    assert refused.value.param == "suffix"


@pytest.mark.parametrize(("special_tokens_in_prompts", "count"), [(True, 7), (False, 3)])
def test_spellings_in_a_prefix_follow_the_setting(load: Load, special_tokens_in_prompts: bool, count: int) -> None:
    tokenizer = load(FORMS[0], special_tokens_in_prompts=special_tokens_in_prompts)
    text = "<|fim_middle|></s>"
    ids = tokenizer.encode_infilling(text, text, special=False)
    assert sum(index in tokenizer.hidden_ids for index in ids) == count


def test_code_llama_gets_the_tokens_of_transformers(tmp_path: Path) -> None:
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = [chr(code) for code in range(33, 127)]
    words = ["<unk>", "<s>", "</s>", *bytes_, "▁", *letters, *CODE_LLAMA.tokens, "▁<EOT>"]
    theirs = CodeLlamaTokenizer({word: i for i, word in enumerate(words)}, [])
    ours = Tokenizer(save(theirs, tmp_path))
    for prefix, suffix in (("def f(", "):"), ("a", " b"), ("a\n", "\nb")):
        assert ours.encode_infilling(prefix, suffix) == theirs(prefix, suffix=suffix)["input_ids"]
