"""Support for grammars, where llguidance is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from workers.engine.interface import ConstraintCompiler
from workers.engine.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from workers.engine.grammar.matcher import MaskFiller

_log = structlog.get_logger(__name__)


def load_grammar_support(
    tokenizer: Tokenizer, vocab_size: int, eos_token_ids: frozenset[int]
) -> tuple[ConstraintCompiler | None, MaskFiller | None]:
    """Return what compiles grammars and what fills masks from them; None for both without llguidance."""
    try:
        from workers.engine.grammar.compiler import GrammarCompiler  # noqa: PLC0415  needs llguidance
        from workers.engine.grammar.matcher import MaskFiller  # noqa: PLC0415
    except ImportError as error:
        _log.warning("grammars_unavailable", missing=error.name)
        return None, None
    return GrammarCompiler(tokenizer, vocab_size, eos_token_ids), MaskFiller(vocab_size)
