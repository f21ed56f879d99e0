"""Formats in which models write their reasoning, detected from their tokenizers and chat templates.

A model reasons between two tags, each of which is one token of its vocabulary. The same spelling in other tokens is
text: a model that quotes a tag does not end its reasoning.

References: the chat templates of Qwen 3, QwQ and DeepSeek R1 (`<think>`), and of Magistral (`[THINK]`).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from shared.errors import ConfigError
from shared.settings import ReasoningParserName


class Stage(Enum):
    """Part of an answer that comes next."""

    UNDECIDED = auto()  # reasoning if the next tag opens it, otherwise content
    REASONING = auto()
    CLOSING = auto()  # the rest of the text that ends reasoning by force
    CONTENT = auto()


@dataclass(frozen=True)
class ReasoningTags:
    """Spelling of one format; `before` and `after` are the space that its models write around the end tag."""

    name: str
    start: str
    end: str
    before: str = ""
    after: str = ""


THINK = ReasoningTags("think", "<think>", "</think>", before="\n", after="\n\n")
MISTRAL = ReasoningTags("mistral", "[THINK]", "[/THINK]")
FORMATS = {tags.name: tags for tags in (THINK, MISTRAL)}


@dataclass(frozen=True)
class ReasoningFormat:
    """Format of reasoning in the tokens of one vocabulary.

    Attributes:
        closing: the tokens that end reasoning by force: `end_id`, with the space around it.
        token_text: text of a single token.
    """

    start_id: int
    end_id: int
    closing: tuple[int, ...]
    token_text: Callable[[int], str]

    def stage_after(self, prompt: Sequence[int], turn_ends: Container[int]) -> Stage:
        """Return the stage in which an answer to the prompt begins.

        A template may open the reasoning itself, or close an empty one so that the model does not reason. Only the
        last turn counts, which begins after one of the tokens `turn_ends`.
        """
        for token_id in reversed(prompt):
            if token_id == self.start_id:
                return Stage.REASONING
            if token_id == self.end_id:
                return Stage.CONTENT
            if token_id in turn_ends:
                break
        return Stage.UNDECIDED


def find_format(
    chosen: ReasoningParserName,
    template: str | Mapping[str, str] | None,
    token_id: Callable[[str], int | None],
    encode: Callable[[str], list[int]],
    token_text: Callable[[int], str],
) -> ReasoningFormat | None:
    """Return the format that a model uses, None if it does not reason.

    Args:
        chosen: a name in FORMATS, "off", or "auto" for the format whose end tag the chat template contains.
        template: the checkpoint's chat template, or several by name.
        token_id: id of the token with this spelling, None if the vocabulary has none.
        encode: returns the tokens of a text, without those that the tokenizer adds around it.

    Raises:
        ConfigError: the vocabulary lacks the tags of the chosen format.
    """
    if chosen == "off":
        return None
    source = template if isinstance(template, str) else "".join((template or {}).values())
    wanted = [FORMATS[chosen]] if chosen != "auto" else [tags for tags in FORMATS.values() if tags.end in source]
    for tags in wanted:
        start, end = token_id(tags.start), token_id(tags.end)
        if start is not None and end is not None:
            return ReasoningFormat(start, end, (*encode(tags.before), end, *encode(tags.after)), token_text)
    if chosen == "auto":
        return None
    tags = FORMATS[chosen]
    raise ConfigError(
        f"reasoning_parser is {chosen}, but {tags.start} and {tags.end} are not tokens of this model",
        param="reasoning_parser",
    )
