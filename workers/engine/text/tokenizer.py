"""Tokenizer and chat template of a checkpoint.

It may be used from several threads: nothing changes after loading. Templates run in transformers' sandbox, and no
code from a checkpoint is run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedConfig
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from shared.errors import ConfigError, InvalidRequest
from shared.protocol import Message, Tools
from workers.engine.interface import too_long
from workers.engine.text.byte_bound import ByteBound
from workers.engine.text.chat_template import native_turns, plain_turns
from workers.engine.text.detokenizer import Detokenizer, TextStream
from workers.engine.text.tool_format import detect_tool_format

# no code from a checkpoint is run
SAFE_LOADING: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


# what transformers adds to a tokenizer's configuration: files of this machine, and how it was loaded
NOT_DESCRIBED = frozenset(
    {"name_or_path", "vocab_file", "merges_file", "tokenizer_file", "tokenizer_object", "is_local", *SAFE_LOADING}
)


class Tokenizer:
    """Fast (Rust) tokenizer and its chat template; see `Encoder`.

    Attributes:
        hf: transformers' tokenizer, for access to its vocabulary.
        tool_format: the format in which the model writes tool calls.
        hidden_ids: special tokens that belong neither to text nor to tool calls.
    """

    def __init__(self, folder: Path) -> None:
        """Load the tokenizer of a folder. Raises ConfigError if it has none that can be used."""
        try:
            self.hf = AutoTokenizer.from_pretrained(folder, config=_config(folder), **SAFE_LOADING)
        except (AttributeError, ImportError, KeyError, OSError, TypeError, ValueError) as error:
            raise ConfigError(f"the tokenizer in {folder} cannot be loaded: {error}") from error
        backend = getattr(self.hf, "backend_tokenizer", None)
        if backend is None:
            raise ConfigError(f"{folder} has no fast tokenizer (tokenizer.json)")
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._bound = ByteBound.from_tokenizer(backend)
        self.tool_format, self._supports_tools = detect_tool_format(self._template(with_tools=True))
        self.hidden_ids = frozenset(
            index
            for index, token in self.hf.added_tokens_decoder.items()
            if token.special and not any(token.content in mark for mark in self.tool_format.marks)
        )

    def _template(self, *, with_tools: bool) -> str:
        """Return the chat template, or an empty string. A checkpoint may have a separate one for tools."""
        found: str | dict[str, str] = self.hf.chat_template or ""
        if isinstance(found, str):
            return found
        return (found.get("tool_use") if with_tools else None) or found.get("default", "")

    @property
    def eos_token_id(self) -> int | None:
        eos: int | None = self.hf.eos_token_id
        return eos

    @property
    def vocab_size(self) -> int:
        size: int = self._backend.get_vocab_size()
        return size

    def encode(
        self, text: str, *, special: bool = True, most_tokens: int | None = None, param: str = "prompt"
    ) -> list[int]:
        """Tokenize a text; see `Encoder`. Raises InvalidRequest, naming `param`, for a lone surrogate."""
        try:
            data = text.encode()
        except UnicodeEncodeError:
            raise InvalidRequest(f"{param} must not contain a lone surrogate", param=param) from None
        if most_tokens is not None and self._bound and self._bound.min_tokens(data) > most_tokens:
            raise too_long(len(data), "bytes", most_tokens, param)
        # a batch of one, because the library's `encode` does not release the GIL
        [encoding] = self._backend.encode_batch_fast([text], add_special_tokens=special)
        ids: list[int] = encoding.ids
        return ids

    def encode_chat(
        self,
        messages: Sequence[Message],
        tools: Tools | None = None,
        *,
        generation_prompt: bool = True,
        special: bool = False,
        most_tokens: int | None = None,
    ) -> list[int]:
        """Render a chat with the model's template and tokenize it; see `Encoder`.

        Raises InvalidRequest if there is no chat template or the template refuses the messages.
        """
        template = self._template(with_tools=tools is not None)
        if not template:
            raise InvalidRequest("this model has no chat template; send a prompt instead", param="messages")
        if self._supports_tools:
            turns, functions = native_turns(messages, tools, short_ids=self.tool_format.short_ids)
        else:
            turns, functions = plain_turns(messages, tools), None
        try:
            text = self.hf.apply_chat_template(
                turns,
                tools=functions,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=generation_prompt,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error
        return self.encode(text, special=special, most_tokens=most_tokens, param="messages")

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids, without special tokens."""
        text: str = self._backend.decode(ids, skip_special_tokens=True)
        return text

    def decode_all(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, including special tokens."""
        text: str = self._backend.decode(ids, skip_special_tokens=False)
        return text

    def entry(self, token_id: int) -> str:
        """Return a token as the vocabulary spells it."""
        found: str | None = self._backend.id_to_token(token_id)
        return found or ""

    def describe(self) -> dict[str, Any]:
        """Return the tokenizer's configuration, in the form of tokenizer_config.json.

        Its special tokens are complete: those that the checkpoint has in other files too.
        """
        config = {name: value for name, value in self.hf.init_kwargs.items() if name not in NOT_DESCRIBED}
        config |= {**self.hf.special_tokens_map, "tokenizer_class": type(self.hf).__name__}
        config |= {name: config.get(name) for name in ("bos_token", "eos_token", "pad_token")}
        config["chat_template"] = self._template(with_tools=False) or None
        found: dict[str, Any] = json.loads(json.dumps(config, default=_json_value))
        return found

    def token_texts(self, ids: list[int]) -> list[str]:
        """Return the text that each token adds to the text of all, including special tokens."""
        stream = Detokenizer(self.decode_all)
        found = [stream.feed(token_id) for token_id in ids]
        found[-1] += stream.flush()
        return found

    def token_text(self, token_id: int) -> str:
        """Return the text of a single token, special or not; an incomplete character becomes U+FFFD."""
        return self.decode_all([token_id])

    def _decode_calls(self, ids: list[int]) -> str:
        """Return the text of token ids, including special tokens that mark a tool call."""
        return self.decode_all([index for index in ids if index not in self.hidden_ids])

    def stream(self, stop: tuple[str, ...] = (), *, calls: bool = False) -> TextStream:
        """Return a detokenizer for one answer, which may have tool `calls`."""
        return TextStream(self._decode_calls if calls else self.decode, stop)


def _json_value(value: Any) -> Any:
    """Return a value that JSON has no type for: a special token as its text, with others as text."""
    return value.content if isinstance(value, AddedToken) else str(value)


def _config(folder: Path) -> PreTrainedConfig | None:
    """Return the model's config.json if tokenizer_config.json names the tokenizer's class, else None.

    Given it, transformers need not import its code of the model, which takes more than a second.
    """
    tokenizer_config = get_tokenizer_config(folder, local_files_only=True)
    if not tokenizer_config.get("tokenizer_class") or "auto_map" in tokenizer_config:
        return None
    raw, _ = PreTrainedConfig.get_config_dict(folder, local_files_only=True)
    return PreTrainedConfig.from_dict(raw)
