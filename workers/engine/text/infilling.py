"""Fill-in-the-middle prompts: a model completes the text between a prefix and a suffix.

References: "Efficient Training of Language Models to Fill in the Middle" (Bavarian et al., 2022), and the model
cards of Qwen2.5-Coder and CodeGemma, StarCoder and Granite, DeepSeek-Coder, Code Llama, Codestral.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass


@dataclass(frozen=True)
class InfillingForm:
    """Order and spelling of the special tokens around prefix and suffix."""

    prefix: str
    suffix: str
    middle: str = ""
    suffix_first: bool = False

    @property
    def tokens(self) -> tuple[str, ...]:
        """The special tokens that a tokenizer has if its model knows this form."""
        return tuple(token for token in (self.prefix, self.suffix, self.middle) if token)

    def parts(self, prefix: str, suffix: str) -> tuple[tuple[str, str], ...]:
        """Return the special tokens in order, each with the text after it."""
        before, after = (self.prefix, prefix), (self.suffix, suffix)
        parts = (after, before) if self.suffix_first else (before, after)
        return (*parts, (self.middle, "")) if self.middle else parts


FORMS = (
    InfillingForm("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    InfillingForm("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    InfillingForm("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    InfillingForm("▁<PRE>", "▁<SUF>", "▁<MID>"),
    InfillingForm("[PREFIX]", "[SUFFIX]", suffix_first=True),
)


def find_infilling_form(vocabulary: Container[str]) -> InfillingForm | None:
    """Return the form whose special tokens a tokenizer has, or None."""
    return next((form for form in FORMS if all(token in vocabulary for token in form.tokens)), None)
