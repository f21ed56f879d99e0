"""Small tokenizers of each kind, and chat templates in the forms that real models have."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer
from transformers import PreTrainedTokenizerFast

from tests.support.checkpoints import CONFIGS

SPECIAL = (
    *("<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|system|>", "<|user|>", "<|assistant|>"),
    *("<|tool|>", "[INST]", "[/INST]"),
)
MARKUP = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
RUN = "    "  # an added token that is ordinary text
LETTERS = [chr(code) for code in range(33, 127)]

TEMPLATES = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "trimmed": "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}<|im_end|>\n\n"
    "{{ m.content | trim }}{{ eos_token }}{% endfor %}",
    "joined role": "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' ~ m.content ~ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|{}|>'.format('assistant') }}{% endif %}",
    "macro": "{% macro show(m) %}{{ ['<|im_start|>', m.role, '\n'] | join }}{{ m.content }}{% endmacro %}"
    "{% for m in messages %}{% set text %}{{ show(m) }}{{ '%s' % '<|im_end|>' }}{% endset %}{{ text.strip() }}"
    "{% endfor %}",
    "brackets": "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}</s>"
    "{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}",
}


def _byte_level() -> RustTokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("i", "m"), ("t", "h"), ("th", "e"), ("Ġ", "a"), ("<", "|"), ("|", ">")]
    words = [*alphabet, *("".join(pair) for pair in merges)]
    made = RustTokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def _sentencepiece(*, prepend: bool) -> RustTokenizer:
    """Return Llama 2's form: special tokens stand in the vocabulary, and a space precedes a text."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["<unk>", "<s>", "</s>", *bytes_, "▁", *LETTERS, "▁a", "th"]
    merges = [("▁", "a"), ("t", "h")]
    made = RustTokenizer(
        models.BPE(
            {word: i for i, word in enumerate(words)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    if prepend:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence(steps)
    return made


def _unigram() -> RustTokenizer:
    """Return a model that finds special tokens in a text even if they are no added tokens."""
    words = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("<|im_end|>", 0.0), ("▁", -1.0)]
    made = RustTokenizer(models.Unigram([*words, *((letter, -2.0) for letter in LETTERS)], 0, byte_fallback=False))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace()
    return made


def _compatibility() -> RustTokenizer:
    """Return a tokenizer whose normalizer makes one character of several."""
    made = _byte_level()
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return made


KINDS = {
    "byte level": _byte_level,
    "prepended space": lambda: _sentencepiece(prepend=True),
    "first space": lambda: _sentencepiece(prepend=False),
    "unigram": _unigram,
    "normalized": _compatibility,
}


def chat_tokenizer(kind: str, template: str, *, normalized: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer of that kind. `<s>` strips the space before it, and `</s>` the space after it."""
    rust = KINDS[kind]()
    strip = {"<s>": {"lstrip": True}, "</s>": {"rstrip": True}}
    special = [AddedToken(t, normalized=normalized, special=True, **strip.get(t, {})) for t in SPECIAL]
    rust.add_special_tokens(special)
    rust.add_tokens([AddedToken(text, normalized=normalized) for text in (*MARKUP, RUN)])
    rust.post_processor = processors.TemplateProcessing(
        "<s> $A", special_tokens=[("<s>", rust.token_to_id("<s>"))], pair="<s> $A $B"
    )
    made = PreTrainedTokenizerFast(tokenizer_object=rust, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made.chat_template = template
    return made


def save(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """Save a tokenizer as that of a tiny model without weights."""
    tokenizer.save_pretrained(folder)
    CONFIGS["llama"].save_pretrained(folder)
    return folder
