"""Compiler of the constraints of answers. It works outside of the engine's thread.

Compiled grammars are cached, the most recently used ones.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from concurrent.futures import Future
from functools import cached_property, partial

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from shared.errors import EngineFailed, HeadraceError, InvalidRequest
from shared.protocol import encode
from workers.engine.grammar.matcher import GrammarMatcher
from workers.engine.grammar.source import answer_grammar
from workers.engine.grammar.vocabulary import make_vocabulary
from workers.engine.interface import Constraint, ConstraintSpec
from workers.engine.text.tokenizer import Tokenizer
from workers.engine.text.tool_call_parser import ToolCallParser

MAX_CACHED_GRAMMARS = 64  # a lexer at its limit takes some 10 MiB
MAX_CONCURRENT_COMPILATIONS = 2
MAX_LEXER_STATES = 50_000  # of one grammar
STACK_BYTES = 256 * 2**20  # of a compiling thread: llguidance recurses over chains of rules and references

_POSITION = re.compile(r"(?:at )?(\d+)\((\d+)\): ")
_REASONS = (
    (("Unsatisfiable", "NoExtension", "is empty"), "no answer can fit it"),
    (("not disjoint", "are disjoint"), "the patterns of patternProperties must not match the same name"),
    (("circular",), "a $ref that leads back to itself must have no other keywords beside it"),
    (("min/maxProperties",), "minProperties and maxProperties need all named properties to be required"),
    (("too ", "Too ", "fuel", "exceeded", "max is", "limit", "Unable to determine"), "it is too complex"),
)


class GrammarCompiler:
    """Compiler of the constraints of one model; see `ConstraintCompiler`.

    Args:
        vocab_size: size of the model's logits, which may exceed the tokenizer's vocabulary.
        eos_token_ids: tokens that end an answer once its grammar allows it.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._limits = LLParserLimits(verbose_errors=False, max_lexer_states=MAX_LEXER_STATES)
        self._cache: OrderedDict[bytes, Future[LLMatcher]] = OrderedDict()
        self._lock = threading.Lock()
        self._first_use = threading.Lock()
        self._slots = threading.BoundedSemaphore(MAX_CONCURRENT_COMPILATIONS)

    def start(self, spec: ConstraintSpec) -> Future[Constraint]:
        """Start to compile a constraint; see `ConstraintCompiler`."""
        if spec.tools is not None and spec.tools.must:
            spec = ConstraintSpec(None, spec.tools)
        tool_parser = None
        if spec.tools is not None:
            tool_parser = partial(ToolCallParser, self._tokenizer.tool_format, self._call_openings(spec))
        ready: Future[Constraint] = Future()
        key = encode(spec)

        def settle(compiled: Future[LLMatcher]) -> None:
            if not ready.set_running_or_notify_cancel():
                return
            if (error := compiled.exception()) is not None:
                ready.set_exception(error)
                return
            matcher = partial(GrammarMatcher, compiled.result(), partial(self._forget, key))
            ready.set_result(Constraint(matcher, tool_parser))

        self._compiled(key, spec).add_done_callback(settle)
        return ready

    def _call_openings(self, spec: ConstraintSpec) -> tuple[str, ...]:
        """Return the beginnings of an answer of calls, if any other answer must be structured output."""
        if spec.structured is None or spec.tools is None:
            return ()
        return tuple(self._tokenizer.tool_format.call_opening(each.name) for each in spec.tools.allowed)

    def _compiled(self, key: bytes, spec: ConstraintSpec) -> Future[LLMatcher]:
        with self._lock:
            found = self._cache.get(key)
            if found is None:
                found = self._cache[key] = Future()
                self._start_thread(key, spec, found)
            self._cache.move_to_end(key)
            while len(self._cache) > MAX_CACHED_GRAMMARS:
                self._cache.popitem(last=False)
        return found

    def _start_thread(self, key: bytes, spec: ConstraintSpec, future: Future[LLMatcher]) -> None:
        usual = threading.stack_size(STACK_BYTES)
        try:
            # a daemon: the process does not wait for it at exit
            threading.Thread(target=self._work, args=(key, spec, future), name="grammar", daemon=True).start()
        finally:
            threading.stack_size(usual)

    def _work(self, key: bytes, spec: ConstraintSpec, future: Future[LLMatcher]) -> None:
        try:
            with self._slots:
                compiled = self._compile(spec)
            future.set_result(compiled)
        except HeadraceError as error:
            self._forget(key)
            future.set_exception(error)
        finally:
            if not future.done():
                self._forget(key)
                future.set_exception(EngineFailed("the grammar compiler failed"))

    def _forget(self, key: bytes) -> None:
        """Drop a grammar that failed, so that the next request compiles it again."""
        with self._lock:
            self._cache.pop(key, None)

    def _compile(self, spec: ConstraintSpec) -> LLMatcher:
        """Compile a grammar and its first mask. Raises InvalidRequest."""
        source = answer_grammar(spec, self._tokenizer.tool_format)
        with self._first_use:
            vocabulary = self._vocabulary
        compiled = LLMatcher(vocabulary, source, log_level=0, limits=self._limits)
        first = compiled.deep_copy()
        first.compute_bitmask()
        if first.is_error() or first.is_stopped():
            raise to_invalid_request(first.get_error(), spec.param)
        return compiled

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        """The vocabulary, built at first use because it reads all tokens."""
        return make_vocabulary(self._tokenizer, self._vocab_size, self._eos_token_ids)


def to_invalid_request(error: str, param: str) -> InvalidRequest:
    """Convert an error of llguidance, whose text may quote the grammar."""
    reason = next((reason for words, reason in _REASONS if any(word in error for word in words)), "it is malformed")
    if (found := _POSITION.match(error)) is not None:
        reason += f" (line {found[1]}, column {found[2]})"
    return InvalidRequest(f"the grammar cannot be compiled: {reason}", param=param)
