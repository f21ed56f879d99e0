"""Options of a chat reach its template as transformers passes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import InvalidRequest
from shared.protocol import Message, PromptOptions
from tests.support.chat_tokenizers import TEMPLATES, chat_tokenizer, save
from workers.engine.text.tokenizer import Tokenizer

VARIABLES = (
    "{% for d in documents or [] %}{{ d.text }};{% endfor %}{{ enable_thinking }}{{ reasoning_effort }}"
    "{% if level is defined %}{{ 'x' * level }}{{ 9 // level }}{% endif %}"
    "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}go{% endif %}"
)
QUESTION = Message("user", "why?")


def load(folder: Path, template: str) -> Tokenizer:
    return Tokenizer(save(chat_tokenizer("byte level", template), folder))


def both(tokenizer: Tokenizer, chat: list[Message], options: PromptOptions, **theirs: Any) -> list[list[int]]:
    """Return our token ids and those of transformers."""
    turns = [{"role": message.role, "content": message.content} for message in chat]
    ids = tokenizer.hf.apply_chat_template(turns, tokenize=True, return_dict=False, **theirs)
    return [tokenizer.encode_chat(chat, None, options), ids]


def test_variables_and_documents_reach_the_template(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, VARIABLES)
    documents, kwargs = [{"text": "né"}], {"enable_thinking": False, "level": 3}
    options = PromptOptions(
        chat_template_kwargs=json.dumps(kwargs), documents=json.dumps(documents), reasoning_effort="low"
    )
    ours, theirs = both(
        tokenizer,
        [QUESTION],
        options,
        documents=documents,
        reasoning_effort="low",
        **kwargs,
        add_generation_prompt=True,
    )
    assert ours == theirs
    assert tokenizer.decode_all(ours) == "né;Falselowxxx3user:why?;go"
    without, theirs = both(tokenizer, [QUESTION], PromptOptions(add_generation_prompt=False))
    assert without == theirs


@pytest.mark.parametrize(
    "kwargs", [{"level": 0}, {"level": "x"}, {"level": None}, {"raise_exception": 1, "level": {}}]
)
def test_a_variable_that_breaks_the_template_is_refused(tmp_path: Path, kwargs: dict[str, Any]) -> None:
    tokenizer = load(tmp_path, VARIABLES)
    options = PromptOptions(chat_template_kwargs=json.dumps(kwargs))
    with pytest.raises(InvalidRequest, match="refuses these messages or chat_template_kwargs"):
        tokenizer.encode_chat([QUESTION], None, options)


@pytest.mark.parametrize("name", ["chatml", "trimmed", "joined role", "brackets"])
@pytest.mark.parametrize("answer", ["Because", "Because ", "Because\n", " the"])
def test_the_final_message_is_continued(tmp_path: Path, name: str, answer: str) -> None:
    tokenizer = load(tmp_path, TEMPLATES[name])
    options = PromptOptions(add_generation_prompt=False, continue_final_message=True)
    chat = [QUESTION, Message("assistant", answer)]
    ours, theirs = both(tokenizer, chat, options, continue_final_message=True)
    assert ours == theirs
    assert tokenizer.decode_all(ours).endswith(answer.strip() if name == "trimmed" else answer)


def test_a_message_that_the_template_drops_cannot_be_continued(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, "{% for m in messages %}{{ m.content[:3] }}{% endfor %}")
    options = PromptOptions(add_generation_prompt=False, continue_final_message=True)
    with pytest.raises(InvalidRequest, match="last message") as refused:
        tokenizer.encode_chat([Message("assistant", "Because")], None, options)
    assert refused.value.param == "continue_final_message"


def test_tokens_around_the_text_are_added_on_request(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, TEMPLATES["chatml"])
    for text in ("plain", "<|im_end|>"):
        plain = tokenizer.encode_chat([Message("user", text)])
        added = tokenizer.encode_chat([Message("user", text)], None, PromptOptions(add_special_tokens=True))
        assert added == [*tokenizer.encode(""), *plain]


def test_a_template_with_a_syntax_error_refuses_chats_alone(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, "{% for %}")
    assert tokenizer.encode("a")
    with pytest.raises(InvalidRequest, match="chat template refuses"):
        tokenizer.encode_chat([QUESTION])
