"""Tiny tokenizers of forms other than the checkpoints' byte-level one."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # sentencepiece's mark


def fallback_tokenizer() -> Tokenizer:
    """Return a tokenizer of Llama 2's form: words with their space, and bytes of other characters."""
    words = ["<unk>", "a", SPACE + "a", SPACE]
    vocabulary = {token: i for i, token in enumerate([*words, *(f"<0x{byte:02X}>" for byte in range(256))])}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[(SPACE, "a")], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer
