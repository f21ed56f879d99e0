"""Executor by vLLM's LLMEngine, in this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm import SamplingParams
from vllm.inputs import tokens_input
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine

from workers.engine.stats import EngineStats
from workers.runtimes.vllm.executor import Logprobs, StepResult
from workers.runtimes.vllm.vllm_internals import engine_stats


class LLMEngineExecutor:
    """vLLM's engine; see `Executor`."""

    def __init__(self, engine: LLMEngine) -> None:
        self._engine = engine
        self.vocab_size: int = engine.model_config.get_vocab_size()
        self.max_model_len: int = engine.model_config.max_model_len
        self.configured_eos = getattr(engine.model_config.hf_text_config, "eos_token_id", None)
        self.device_type: str = engine.vllm_config.device_config.device_type

    def add(
        self, choice_id: str, prompt: list[int], arguments: Mapping[str, Any], *, salt: bytes, priority: int
    ) -> None:
        params = SamplingParams(**arguments, output_kind=RequestOutputKind.DELTA)
        tokens = tokens_input(prompt, cache_salt=salt.hex() or None)
        self._engine.add_request(choice_id, tokens, params, priority=priority)

    def abort(self, choice_ids: list[str]) -> None:
        self._engine.abort_request(choice_ids)

    def step(self) -> list[StepResult]:
        return [_result(output) for output in self._engine.step()]

    def stats(self) -> EngineStats:
        return engine_stats(self._engine)


def _result(output: RequestOutput) -> StepResult:
    [completion] = output.outputs
    token_ids = completion.token_ids
    return StepResult(
        output.request_id,
        token_ids,
        [_logprobs(each) for each in completion.logprobs] if completion.logprobs else [None] * len(token_ids),
        output.finished,
        output.num_cached_tokens or 0,
        [_logprobs(each) for each in output.prompt_logprobs or ()],
    )


def _logprobs(found: Mapping[int, Any] | None) -> Logprobs | None:
    return None if found is None else {index: (each.logprob, each.rank) for index, each in found.items()}
