"""Tokenizer and chat template of a GGUF file, built by transformers from the file's metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RustTokenizer
from tokenizers import normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import (
    GGUF_PRE_TOKENIZER_SPLITS,
    convert_gguf_tokenizer,
    get_gguf_tokenizer,
)

from shared.errors import ConfigError

MODELS = ("gpt2", "llama")
SPACE = "\u2581"
# names of the split of byte-level vocabularies that transformers has no expression for
GPT2_SPLITS = ("gpt-2", "phi-2")
DIGIT_SPLITS = ("smollm", "starcoder", "refact", "command-r")  # each digit apart, then as GPT-2
LLAMA3_SPLITS = ("llama3", "llama-v3", "llama-bpe", "falcon3")  # words of the vocabulary need no merges


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Build the tokenizer of a file. Raises ConfigError for one that would cut texts otherwise than the model's."""
    try:
        architecture, described, config = get_gguf_tokenizer(str(path))
        _check(described)
        backend = _without_additions(convert_gguf_tokenizer(architecture, described)[0], len(described["tokens"]))
    except (AttributeError, IndexError, KeyError, TypeError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{path}: its tokenizer cannot be read: {error}", param="model") from error
    split = described.get("pre_tokenizer_type")
    if described["tokenizer_type"] == "gpt2":
        if split in DIGIT_SPLITS:
            whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
            backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole])
        backend.model.ignore_merges = split in LLAMA3_SPLITS
    elif not architecture.startswith("gemma"):
        backend.normalizer, backend.pre_tokenizer = _spaces(described.get("add_prefix_space", True)), None
    special = {name: config[name] for name in ("bos_token", "eos_token", "unk_token", "pad_token") if config[name]}
    _add_ends(backend, special, _adds_bos(described, config), bool(config.get("add_eos_token")))
    template = config.get("chat_template")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=template if isinstance(template, str) else None,
        clean_up_tokenization_spaces=False,
        **special,
    )


def _spaces(prefix: bool) -> normalizers.Normalizer:
    """Return how a vocabulary of SentencePiece writes spaces: as llama.cpp, which adds one before any text."""
    spelled = normalizers.Replace(" ", SPACE)
    return normalizers.Sequence([normalizers.Prepend(SPACE), spelled] if prefix else [spelled])


def _without_additions(backend: RustTokenizer, size: int) -> RustTokenizer:
    """Return the tokenizer without the tokens that transformers' class added to the file's `size` tokens."""
    described = json.loads(backend.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if token["id"] < size]
    return RustTokenizer.from_str(json.dumps(described))


def _check(described: dict[str, Any]) -> None:
    kind = described.get("tokenizer_type")
    if kind not in MODELS:
        raise ConfigError(
            f"GGUF: tokenizer.ggml.model must be one of {', '.join(MODELS)}, got {kind}", param="model"
        )
    split, known = described.get("pre_tokenizer_type"), {*GGUF_PRE_TOKENIZER_SPLITS, *GPT2_SPLITS, *DIGIT_SPLITS}
    if kind == "gpt2" and split not in known:
        raise ConfigError(
            f"GGUF: tokenizer.ggml.pre must be one of {', '.join(sorted(known))}, got {split}", param="model"
        )


def _adds_bos(described: dict[str, Any], config: dict[str, Any]) -> bool:
    default = described.get("pre_tokenizer_type") in LLAMA3_SPLITS
    return bool(config.get("add_bos_token", default))


def _add_ends(backend: Any, special: dict[str, str], bos: bool, eos: bool) -> None:
    """Let the tokenizer add the special tokens before and after a text."""
    marks = {"bos_token": bos, "eos_token": eos}
    used = {name: special[name] for name, adds in marks.items() if adds and name in special}
    if not used:
        return
    form = [used.get("bos_token"), "$A", used.get("eos_token")]
    backend.post_processor = TemplateProcessing(
        single=[part for part in form if part],
        special_tokens=[(token, backend.token_to_id(token)) for token in set(used.values())],
    )
