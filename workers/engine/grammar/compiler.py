"""Compiler of the constraints of answers. It works outside of the engine's thread.

Compiled grammars are cached; beyond `MAX_CACHE_BYTES` the least recently used are dropped.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property, partial

import xgrammar

from shared.errors import EngineFailed, HeadraceError
from shared.protocol import encode
from workers.engine.grammar.compile_sandbox import CompileSandbox
from workers.engine.grammar.matcher import GrammarMatcher
from workers.engine.grammar.mute_stderr import MutedStderr
from workers.engine.grammar.xgrammar_adapter import XGRAMMAR_ERRORS, make_grammar, to_invalid_request
from workers.engine.interface import Constraint, ConstraintSpec
from workers.engine.text.tokenizer import Tokenizer
from workers.engine.text.tool_call_parser import ToolCallParser

MAX_CACHE_BYTES = 256 * 2**20
MAX_CONCURRENT_COMPILATIONS = 2
MUTED_STDERR = MutedStderr()


@dataclass
class _Entry:
    """Grammar that is compiled or being compiled.

    Attributes:
        proven: some worker has compiled it within the limits before, so they do not apply.
    """

    proven: bool
    compiled: Future[xgrammar.CompiledGrammar] = field(default_factory=Future)


class XgrammarCompiler:
    """Compiler of the constraints of one model; see `ConstraintCompiler`.

    Args:
        vocab_size: size of the model's logits, which may exceed the tokenizer's vocabulary.
        eos_token_ids: tokens that end an answer once its grammar allows it.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos = sorted(eos_token_ids)
        self._cache: OrderedDict[bytes, _Entry] = OrderedDict()
        self._lock = threading.Lock()
        self._first_use = threading.Lock()
        self._compilation_slots = threading.BoundedSemaphore(MAX_CONCURRENT_COMPILATIONS)

    def start(self, spec: ConstraintSpec, *, proven: bool = False) -> Future[Constraint]:
        """Start to compile a constraint; see `ConstraintCompiler`."""
        if spec.tools is not None and spec.tools.must:
            spec = ConstraintSpec(None, spec.tools)
        tool_parser = None
        if spec.tools is not None:
            tool_parser = partial(ToolCallParser, self._tokenizer.tool_format, self._call_openings(spec))
        ready: Future[Constraint] = Future()

        def settle(compiled: Future[xgrammar.CompiledGrammar]) -> None:
            if not ready.set_running_or_notify_cancel():
                return
            if (error := compiled.exception()) is not None:
                ready.set_exception(error)
                return
            make = partial(GrammarMatcher, compiled.result(), ends_by_token=bool(self._eos))
            ready.set_result(Constraint(make, tool_parser))

        self._compiled(spec, proven).add_done_callback(settle)
        return ready

    def _call_openings(self, spec: ConstraintSpec) -> tuple[str, ...]:
        """Return the beginnings of an answer of calls, if any other answer must be structured output."""
        if spec.structured is None or spec.tools is None:
            return ()
        return tuple(self._tokenizer.tool_format.call_opening(each.name) for each in spec.tools.allowed)

    def _compiled(self, spec: ConstraintSpec, proven: bool) -> Future[xgrammar.CompiledGrammar]:
        key = encode(spec)
        with self._lock:
            found = self._cache.get(key)
            if found is None:
                found = self._cache[key] = _Entry(proven)
                # a daemon: the process does not wait for it at exit
                threading.Thread(target=self._work, args=(key, spec, found), name="grammar", daemon=True).start()
            found.proven |= proven
            self._cache.move_to_end(key)
        return found.compiled

    def _work(self, key: bytes, spec: ConstraintSpec, entry: _Entry) -> None:
        future = entry.compiled
        try:
            with self._compilation_slots:
                compiled = self._compile(spec, entry)
            future.set_result(compiled)
        except HeadraceError as error:
            future.set_exception(error)
        except XGRAMMAR_ERRORS as error:
            future.set_exception(to_invalid_request(error, spec.param))
        finally:
            if not future.done():
                future.set_exception(EngineFailed("the grammar compiler failed"))
            self._clean_up(key, future)

    def _compile(self, spec: ConstraintSpec, entry: _Entry) -> xgrammar.CompiledGrammar:
        """Compile a grammar. Raises InvalidRequest, EngineFailed, and XGRAMMAR_ERRORS."""
        tool_format = self._tokenizer.tool_format
        with self._first_use:
            sandbox, compiler = self._sandbox, self._compiler
        if not entry.proven:
            try:
                sandbox.check(spec, tool_format)
            except HeadraceError:
                if not entry.proven:  # it may have been marked meanwhile
                    raise
        with MUTED_STDERR:
            return compiler.compile_grammar(make_grammar(spec.structured, spec.tools, tool_format))

    def _clean_up(self, key: bytes, future: Future[xgrammar.CompiledGrammar]) -> None:
        """Remove a failure from the cache, and what does not fit."""
        if future.exception() is not None:
            with self._lock:
                self._cache.pop(key, None)
        self._evict()

    def _evict(self) -> None:
        with self._lock:
            kept = {key: entry.compiled for key, entry in self._cache.items()}
            sizes = {
                key: each.result().memory_size_bytes
                for key, each in kept.items()
                if each.done() and each.exception() is None
            }
            over = sum(sizes.values()) - MAX_CACHE_BYTES
            for key, size in sizes.items():
                if over <= 0:
                    return
                del self._cache[key]
                over -= size

    @cached_property
    def _sandbox(self) -> CompileSandbox:
        return CompileSandbox(self._info)

    @cached_property
    def _compiler(self) -> xgrammar.GrammarCompiler:
        return xgrammar.GrammarCompiler(self._info, max_threads=MAX_CONCURRENT_COMPILATIONS, cache_enabled=False)

    @cached_property
    def _info(self) -> xgrammar.TokenizerInfo:
        """Vocabulary for xgrammar, built at first use because it reads all tokens."""
        hf, vocab_size = self._tokenizer.hf, self._vocab_size
        found = xgrammar.TokenizerInfo.from_huggingface(hf, vocab_size=vocab_size, stop_token_ids=self._eos or None)
        vocabulary = [""] * vocab_size
        for token, index in hf.get_vocab().items():
            if index < vocab_size and index not in self._tokenizer.hidden_ids:  # special tokens are not text
                vocabulary[index] = token
        return xgrammar.TokenizerInfo(
            vocabulary,
            found.vocab_type,
            vocab_size=vocab_size,
            stop_token_ids=self._eos or None,
            add_prefix_space=found.add_prefix_space,
        )
