"""Construction of sequences from a request: tokens, text, constraint and reasoning of each choice."""

from __future__ import annotations

from hashlib import blake2b
from itertools import count

import torch

from workers.engine.grammar.constraint_gate import ConstraintGate
from workers.engine.interface import EngineRequest
from workers.engine.mark import Mark
from workers.engine.sampling.token_rules import TokenRules
from workers.engine.sequence import Sequence
from workers.engine.text.detokenizer import TextStream
from workers.engine.text.reasoning_parser import ReasoningParser
from workers.engine.text.tokenizer import Tokenizer
from workers.engine.waits import WaitClock


class SequenceBuilder:
    """Builds the sequences of one engine."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        eos_token_ids: frozenset[int],
        *,
        max_model_len: int,
        vocab_size: int,
        device: torch.device,
        watermark: Mark,
    ) -> None:
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        self._max_model_len = max_model_len
        self._vocab_size = vocab_size
        self._device = device
        self._watermark = watermark
        self._arrivals = count()

    def build(self, request: EngineRequest) -> list[Sequence]:
        """Return the choices of a request in their state after the tokens that earlier runs emitted.

        Raises:
            EngineFailed: the grammar does not accept one of them.
            InvalidRequest: the answer cannot be marked.
        """
        if request.params.watermark:
            self._watermark.check(request.params)
        rules, waits = self._rules(request), WaitClock()
        choices = range(request.params.n if request.params.max_tokens != 0 else 1)  # one computes the prompt
        return [self._choice(request, choice, rules, waits) for choice in choices]

    def _choice(self, request: EngineRequest, choice: int, rules: TokenRules | None, waits: WaitClock) -> Sequence:
        params = request.params
        text = self._tokenizer.stream(params, calls=request.tool_parser is not None)
        reasoning = self._reasoning_parser(request, text)
        matcher = request.matcher() if request.matcher else None
        if matcher is not None and reasoning is not None:
            matcher = ConstraintGate(matcher, reasoning, self._eos_token_ids)
        sequence = Sequence(
            job_id=request.id,
            choice=choice,
            arrival=next(self._arrivals),
            params=params,
            tokens=list(request.prompt),
            num_prompt_tokens=len(request.prompt),
            max_tokens=request.max_output_tokens(self._max_model_len),
            eos_token_ids=self._eos_token_ids,
            text=text,
            rules=rules,
            watermark=self._watermark if params.watermark else None,
            matcher=matcher,
            tool_parser=request.tool_parser() if request.tool_parser else None,
            reasoning_parser=reasoning,
            priority=request.priority,
            tenant=request.tenant,
            due=request.due,
            prefix_salt=_prefix_salt(request),
            adapter=request.adapter,
            waits=waits,
        )
        for token_id in request.resumed[choice] if choice < len(request.resumed) else ():
            sequence.accept(token_id)
        return sequence

    def _reasoning_parser(self, request: EngineRequest, text: TextStream) -> ReasoningParser | None:
        form, budget = self._tokenizer.reasoning_format, request.params.thinking_token_budget
        if form is None or not (request.separates_reasoning or budget is not None):
            return None
        return ReasoningParser(
            form,
            request.prompt,
            self._eos_token_ids,
            tag_lengths=(text.token_length(form.start_id), text.token_length(form.end_id)),
            budget=budget,
            separates=request.separates_reasoning,
            trims_content=request.params.structured_outputs is None,  # its space may be part of the answer
        )

    def _rules(self, request: EngineRequest) -> TokenRules | None:
        """Return the rules of a request, None if it has none."""
        params = request.params
        if not (params.allowed_token_ids or request.bad_words or params.min_tokens):
            return None
        ends = self._eos_token_ids.union(params.stop_token_ids)
        return TokenRules(params, request.bad_words, ends, vocab_size=self._vocab_size, device=self._device)


def _prefix_salt(request: EngineRequest) -> bytes:
    """Return the request's salt; another one for each adapter, whose keys and values differ."""
    if request.adapter is None:
        return request.prefix_salt
    return blake2b(request.adapter.digest.encode(), key=request.prefix_salt, digest_size=16).digest()
