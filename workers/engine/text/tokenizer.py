"""Tokenizer and chat template of a checkpoint.

It may be used from several threads: nothing changes after loading. Templates run in transformers' sandbox, and no
code from a checkpoint is run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer
from transformers import AutoTokenizer, PreTrainedConfig
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from shared.errors import ConfigError, InvalidRequest
from shared.protocol import DEFAULT_PROMPT_OPTIONS, Message, PromptOptions, SamplingParams, Tools
from shared.settings import ReasoningParserName
from workers.engine.interface import too_long
from workers.engine.pair_form import PairForm
from workers.engine.text.byte_bound import ByteBound
from workers.engine.text.chat_renderer import ChatRenderer
from workers.engine.text.control_tokens import (
    ControlTokens,
    added_around_text,
    control_ids,
    encode_alone,
    pair_form,
)
from workers.engine.text.detokenizer import Detokenizer, TextStream, TokenTexts
from workers.engine.text.infilling import find_infilling_form
from workers.engine.text.reasoning_format import find_format
from workers.engine.text.token_bytes import TokenBytes
from workers.engine.text.traced_text import mask_of, plain

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
        special_ids: special tokens, which text leaves out.
        hidden_ids: special tokens that belong neither to text nor to tool calls.
        reasoning_format: the format in which the model writes its reasoning; None if it does not reason.
    """

    def __init__(
        self,
        folder: Path,
        *,
        reasoning_parser: ReasoningParserName = "auto",
        special_tokens_in_messages: bool = False,
        special_tokens_in_prompts: bool = True,
    ) -> None:
        """Load the tokenizer of a folder.

        Args:
            folder: of the checkpoint.
            reasoning_parser: see `find_format`.
            special_tokens_in_messages: take the spelling of a control token in a chat's texts as that token.
            special_tokens_in_prompts: the same in other texts.

        Raises:
            ConfigError: there is no tokenizer that can be used, or it lacks the tokens of the chosen format.
        """
        self.hf, backend = _load(folder)
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._bound = ByteBound.from_tokenizer(backend)
        self._bytes = TokenBytes(backend)
        decoders = (self.decode, self.decode_all, self._decode_calls, self._decode_tight)
        self._texts = {each: TokenTexts(each) for each in decoders} if self._bytes.joins_bytes else {}
        self._renderer = ChatRenderer(self.hf)
        self.tool_format = self._renderer.tool_format
        special = {index: token.content for index, token in self.hf.added_tokens_decoder.items() if token.special}
        marks = self.tool_format.marks
        self.special_ids = frozenset(special)
        self._added_ids = frozenset(self.hf.added_tokens_decoder)
        self.hidden_ids = frozenset(
            index for index, text in special.items() if not any(text in mark for mark in marks)
        )
        self.reasoning_format = find_format(
            reasoning_parser,
            self.hf.chat_template,
            backend.token_to_id,
            lambda text: encode_alone(backend, text, special=False),
            lambda token_id: self.decode_all([token_id]),
        )
        self._infilling = find_infilling_form(backend.get_vocab())
        control = None
        if not special_tokens_in_prompts or (self.hf.chat_template and not special_tokens_in_messages):
            control = ControlTokens(backend, control_ids(backend, self._renderer.markup))
        self._control_in_messages = None if special_tokens_in_messages else control
        self._control_in_prompts = None if special_tokens_in_prompts else control

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
        return self._encode(text, self._control_in_prompts, special, most_tokens, param)

    def encode_chat(
        self,
        messages: Sequence[Message],
        tools: Tools | None = None,
        options: PromptOptions = DEFAULT_PROMPT_OPTIONS,
        *,
        most_tokens: int | None = None,
    ) -> list[int]:
        """Render a chat with the model's template and tokenize it; see `Encoder`.

        Raises InvalidRequest if there is no chat template or the template refuses the messages.
        """
        text = self._renderer.render(messages, tools, options)
        special = bool(options.add_special_tokens)  # the template writes its own
        return self._encode(text, self._control_in_messages, special, most_tokens, "messages")

    def text_form(self) -> tuple[Sequence[int], Sequence[int]]:
        """Return the special tokens before and after a plain text."""
        return added_around_text(self._backend)

    def pair_form(self) -> PairForm:
        """Return the special tokens of a pair of texts; see `Encoder`."""
        return pair_form(self._backend)

    def encode_infilling(
        self, prefix: str, suffix: str, *, special: bool = True, most_tokens: int | None = None
    ) -> list[int]:
        """Tokenize a text with a gap; see `Encoder`."""
        if self._infilling is None:
            raise InvalidRequest("suffix: this model has no fill-in-the-middle form", param="suffix")
        ids = added_around_text(self._backend)[0] if special else []
        for mark, text in self._infilling.parts(prefix, suffix):
            mark_id = self._backend.token_to_id(mark)
            assert mark_id is not None
            ids += [mark_id, *self.encode(text, special=False, most_tokens=most_tokens)]
        return ids

    def _encode(
        self, text: str, control: ControlTokens | None, special: bool, most_tokens: int | None, param: str
    ) -> list[int]:
        try:
            data = text.encode()
        except UnicodeEncodeError:
            raise InvalidRequest(f"{param} must not contain a lone surrogate", param=param) from None
        if most_tokens is not None and self._bound and self._bound.min_tokens(data) > most_tokens:
            raise too_long(len(data), "bytes", most_tokens, param)
        if control is None:
            return encode_alone(self._backend, text, special=special)
        return control.encode(plain(text), mask_of(text), special=special)

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
        config["chat_template"] = self._renderer.template or None
        found: dict[str, Any] = json.loads(json.dumps(config, default=_json_value))
        return found

    def token_texts(self, ids: list[int]) -> list[str]:
        """Return the text that each token adds to the text of all, including special tokens."""
        stream = Detokenizer(self.decode_all, self._ends_within_character)
        found = [stream.feed(token_id) for token_id in ids]
        found[-1] += stream.flush()
        return found

    def token_bytes(self, token_id: int, *, first: bool = False) -> bytes:
        """Return the bytes of a single token, special or not; see `TokenBytes`."""
        return self._bytes(token_id, first=first)

    def _ends_within_character(self, ids: list[int]) -> bool:
        """Return whether the text of token ids ends within a character, apart from special tokens."""
        return self._bytes.end_within_character(index for index in ids if index not in self.special_ids)

    def _decode_calls(self, ids: list[int]) -> str:
        """Return the text of token ids, including special tokens that mark a tool call."""
        return self.decode_all([index for index in ids if index not in self.hidden_ids])

    def _decode_tight(self, ids: list[int]) -> str:
        """Return the text of token ids, including special tokens, without spaces between adjacent added tokens."""
        added = self._added_ids
        cuts = [i for i in range(1, len(ids)) if ids[i - 1] in added and ids[i] in added]
        return "".join(self.decode_all(ids[start:end]) for start, end in pairwise([0, *cuts, len(ids)]))

    def stream(self, params: SamplingParams, *, calls: bool = False) -> TextStream:
        """Return a detokenizer for one answer, which may have tool `calls`."""
        if params.skip_special_tokens:
            decode = self._decode_calls if calls else self.decode
        else:
            decode = self.decode_all if params.spaces_between_special_tokens else self._decode_tight
        return TextStream(
            decode,
            params.stop,
            self._ends_within_character,
            shows_stop=params.include_stop_str_in_output,
            texts=self._texts.get(decode),
        )

    def bad_word_ids(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Return the token ids of the forms of each word; see `Encoder`. Raises InvalidRequest as `encode` does."""
        found = []
        for word in words:
            plain, spaced = (
                tuple(self.encode(space + word.lstrip(), special=False, param="bad_words")) for space in ("", " ")
            )
            if not plain:
                raise InvalidRequest("each of bad_words must have at least one token", param="bad_words")
            found.append(plain)
            if spaced and spaced[0] != plain[0] and len(spaced) == len(plain):
                found.append(spaced)
        return tuple(found)


def _json_value(value: Any) -> Any:
    """Return a value that JSON has no type for: a special token as its text, with others as text."""
    return value.content if isinstance(value, AddedToken) else str(value)


def _load(folder: Path) -> tuple[Any, RustTokenizer]:
    """Return transformers' tokenizer of a folder, and the fast one in it. Raises ConfigError."""
    try:
        found = AutoTokenizer.from_pretrained(folder, config=_config(folder), **SAFE_LOADING)
    except Exception as error:  # tokenizers raises Exception itself for a malformed file
        raise ConfigError(f"the tokenizer in {folder} cannot be loaded: {error}") from error
    fast: RustTokenizer | None = getattr(found, "backend_tokenizer", None)
    if fast is None:
        raise ConfigError(f"{folder} has no fast tokenizer (tokenizer.json)")
    return found, fast


def _config(folder: Path) -> PreTrainedConfig | None:
    """Return the model's config.json if tokenizer_config.json names the tokenizer's class, else None.

    Given it, transformers need not import its code of the model, which takes more than a second.
    """
    tokenizer_config = get_tokenizer_config(folder, local_files_only=True)
    if not tokenizer_config.get("tokenizer_class") or "auto_map" in tokenizer_config:
        return None
    raw, _ = PreTrainedConfig.get_config_dict(folder, local_files_only=True)
    return PreTrainedConfig.from_dict(raw)
