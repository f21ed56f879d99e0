"""Text to token ids and back, by the checkpoint's own tokenizer and chat template.

Safe to use from several threads: nothing changes after loading. Templates run in transformers' sandbox; no
code of a checkpoint is run. It knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import TemplateError
from transformers import AutoTokenizer

from shared.errors import ConfigError, InvalidRequest
from shared.protocol import Message
from workers.engine.detokenizer import TextStream


class Tokenizer:
    """A fast (Rust) tokenizer and its chat template."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError where the folder has no tokenizer that can be used."""
        try:
            self._hf = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ConfigError(f"{folder} has no tokenizer that can be loaded: {error}") from error
        backend = getattr(self._hf, "backend_tokenizer", None)
        if backend is None:
            raise ConfigError(f"{folder} has no fast tokenizer (tokenizer.json)")
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend

    @property
    def eos_token_id(self) -> int | None:
        eos: int | None = self._hf.eos_token_id
        return eos

    def encode(self, text: str) -> list[int]:
        """With the special tokens that the tokenizer puts around a plain text, if any."""
        ids: list[int] = self._backend.encode(text).ids
        return ids

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """The chat as the model was trained to read it, up to where its answer begins.

        Raises InvalidRequest where there is no chat template, or the template refuses the messages.
        """
        if not self._hf.chat_template:
            raise InvalidRequest("this model has no chat template; send a prompt instead", param="messages")
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text = self._hf.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError) as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Without special tokens."""
        text: str = self._backend.decode(ids, skip_special_tokens=True)
        return text

    def piece(self, token_id: int) -> str:
        """One token by itself, special or not; what is no whole character becomes U+FFFD."""
        text: str = self._backend.decode([token_id], skip_special_tokens=False)
        return text

    def stream(self, stop: tuple[str, ...] = ()) -> TextStream:
        """A new incremental decoder of one answer."""
        return TextStream(self.decode, stop)
