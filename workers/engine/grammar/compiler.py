"""Compiles what requests hold their answers to, off the engine's thread.

What was compiled is kept, the least lately used dropped first, by its size. It knows nothing of scheduling.
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
from workers.engine.grammar.compile_sandbox import Trials
from workers.engine.grammar.matcher import GrammarMatcher
from workers.engine.grammar.mute_stderr import Silence
from workers.engine.grammar.xgrammar_adapter import COMPLAINTS, grammar_of, refusal
from workers.engine.interface import Constraint, Form
from workers.engine.text.tokenizer import Tokenizer
from workers.engine.text.tool_call_parser import CallReader

CACHE_BYTES = 256 * 2**20
COMPILERS = 2  # grammars compiled at once
SILENCE = Silence()


@dataclass
class _Entry:
    """A grammar, compiled or on its way.

    Attributes:
        proven: it was compiled within the limits before, so that no limit ends it now.
    """

    proven: bool
    compiled: Future[xgrammar.CompiledGrammar] = field(default_factory=Future)


class Constraints:
    """Of one model.

    Args:
        vocab_size: of the model's logits, which may be wider than the tokenizer's vocabulary.
        eos_token_ids: what ends an answer, once its grammar allows it.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos = sorted(eos_token_ids)
        self._cache: OrderedDict[bytes, _Entry] = OrderedDict()
        self._lock = threading.Lock()
        self._first_use = threading.Lock()
        self._slots = threading.BoundedSemaphore(COMPILERS)

    def start(self, form: Form, *, proven: bool = False) -> Future[Constraint]:
        """See Constrainer."""
        if form.tools is not None and form.tools.must:
            form = Form(None, form.tools)
        reader = None if form.tools is None else partial(CallReader, self._tokenizer.tool_format, self._first(form))
        ready: Future[Constraint] = Future()

        def settle(compiled: Future[xgrammar.CompiledGrammar]) -> None:
            if not ready.set_running_or_notify_cancel():
                return
            if (error := compiled.exception()) is not None:
                ready.set_exception(error)
                return
            make = partial(GrammarMatcher, compiled.result(), ends_by_token=bool(self._eos))
            ready.set_result(Constraint(make, reader))

        self._compiled(form, proven).add_done_callback(settle)
        return ready

    def _first(self, form: Form) -> tuple[str, ...]:
        """What an answer begins with that calls, where any other has to be of its form."""
        if form.structured is None or form.tools is None:
            return ()
        return tuple(self._tokenizer.tool_format.first_call(each.name) for each in form.tools.allowed)

    def _compiled(self, form: Form, proven: bool) -> Future[xgrammar.CompiledGrammar]:
        key = encode(form)
        with self._lock:
            found = self._cache.get(key)
            if found is None:
                found = self._cache[key] = _Entry(proven)
                # a thread that nobody waits for at the end
                threading.Thread(target=self._work, args=(key, form, found), name="grammar", daemon=True).start()
            found.proven |= proven
            self._cache.move_to_end(key)
        return found.compiled

    def _work(self, key: bytes, form: Form, entry: _Entry) -> None:
        future = entry.compiled
        try:
            with self._slots:
                compiled = self._compile(form, entry)
            future.set_result(compiled)
        except HeadraceError as error:
            future.set_exception(error)
        except COMPLAINTS as error:
            future.set_exception(refusal(error, form.param))
        finally:
            if not future.done():
                future.set_exception(EngineFailed("the grammar compiler broke"))
            self._tidy(key, future)

    def _compile(self, form: Form, entry: _Entry) -> xgrammar.CompiledGrammar:
        """Raises InvalidRequest, EngineFailed; what xgrammar raises."""
        tool_format = self._tokenizer.tool_format
        with self._first_use:
            trials, compiler = self._trials, self._compiler
        if not entry.proven:
            try:
                trials.check(form, tool_format)
            except HeadraceError:
                if not entry.proven:  # it may be by now
                    raise
        with SILENCE:
            return compiler.compile_grammar(grammar_of(form.structured, form.tools, tool_format))

    def _tidy(self, key: bytes, future: Future[xgrammar.CompiledGrammar]) -> None:
        """Forget a failure, and what there is no room for."""
        if future.exception() is not None:
            with self._lock:
                self._cache.pop(key, None)
        self._shrink()

    def _shrink(self) -> None:
        with self._lock:
            kept = {key: entry.compiled for key, entry in self._cache.items()}
            sizes = {
                key: each.result().memory_size_bytes
                for key, each in kept.items()
                if each.done() and each.exception() is None
            }
            over = sum(sizes.values()) - CACHE_BYTES
            for key, size in sizes.items():
                if over <= 0:
                    return
                del self._cache[key]
                over -= size

    @cached_property
    def _trials(self) -> Trials:
        return Trials(self._info)

    @cached_property
    def _compiler(self) -> xgrammar.GrammarCompiler:
        return xgrammar.GrammarCompiler(self._info, max_threads=COMPILERS, cache_enabled=False)

    @cached_property
    def _info(self) -> xgrammar.TokenizerInfo:
        """Made when first needed: it reads the whole vocabulary."""
        hf, vocab_size = self._tokenizer.hf, self._vocab_size
        found = xgrammar.TokenizerInfo.from_huggingface(hf, vocab_size=vocab_size, stop_token_ids=self._eos or None)
        vocabulary = [""] * vocab_size
        for token, index in hf.get_vocab().items():
            if index < vocab_size and index not in self._tokenizer.hidden_ids:  # special tokens are no text
                vocabulary[index] = token
        return xgrammar.TokenizerInfo(
            vocabulary,
            found.vocab_type,
            vocab_size=vocab_size,
            stop_token_ids=self._eos or None,
            add_prefix_space=found.add_prefix_space,
        )
