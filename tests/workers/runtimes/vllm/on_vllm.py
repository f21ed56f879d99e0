"""vLLM keeps the contract of runtimes; `scripts/test-vllm` runs this in vLLM's environment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shared.settings import load
from tests.support.runtime_contract import RuntimeContract, StopContract, again, ask
from tests.support.runtime_driver import RuntimeDriver
from tests.support.tested_runtime import OPTIONS, START_LIMIT_S

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SETTINGS = {"runtime": "vllm", "max_model_len": 256, "max_num_seqs": 8, "kv_cache_gib": 0.5}


class TestVllm(RuntimeContract, StopContract):
    @pytest.fixture(scope="class")
    @classmethod
    def runtime(cls, smollm2: Path) -> Iterator[RuntimeDriver]:
        settings = load({**SETTINGS, "model": str(smollm2), "vllm_options": json.dumps(OPTIONS)}).settings
        with RuntimeDriver.of(settings, START_LIMIT_S) as driver:
            yield driver

    def test_vllm_computes_on_all_cores(self, runtime: RuntimeDriver) -> None:
        assert torch.get_num_threads() == len(os.sched_getaffinity(0))

    @pytest.mark.parametrize(
        "params",
        [
            {"temperature": 0.8, "n": 2},
            {"presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
            {"bad_words": ("the", "and"), "min_tokens": 12, "logit_bias": {198: -100.0}},
            {"temperature": 1.0, "top_k": 5, "top_p": 0.9, "min_p": 0.05},
        ],
    )
    def test_a_takeover_continues_with_the_same_tokens(
        self, runtime: RuntimeDriver, params: dict[str, object]
    ) -> None:
        request = ask("The river", 12, ignore_eos=True, **params)
        whole = runtime.answer(request)
        logged = whole.tokens[: len(whole.tokens) // 2]
        rest = runtime.answer(again(request), logged)
        for choice in range(request.params.n):
            assert rest.text(choice) == whole.text(choice)

    def test_tokens_have_the_logprobs_of_the_model(self, runtime: RuntimeDriver) -> None:
        """Given a bias that changes the choice, the log-probabilities are those before it."""
        plain = runtime.answer(ask("One two three", 1, logprobs=2)).tokens[0]
        assert plain.logprobs is not None
        assert plain.logprobs.top[0][0] == plain.id
        other = plain.logprobs.top[1][0]
        biased = runtime.answer(ask("One two three", 1, logprobs=2, logit_bias={other: 100.0})).tokens[0]
        assert biased.id == other
        assert biased.logprobs is not None
        assert biased.logprobs.logprob == pytest.approx(plain.logprobs.top[1][1], abs=1e-4)

    def test_the_prompt_is_scored(self, runtime: RuntimeDriver) -> None:
        scored = runtime.answer(ask("One two three", 0, echo=True, prompt_logprobs=1))
        assert "".join(token.text for token in scored.prompt) == "One two three"
        assert scored.prompt[0].logprobs is None
        assert all(token.logprobs and token.logprobs.rank >= 1 for token in scored.prompt[1:])
        assert scored.tokens == []


class TestSpeculation:
    """vLLM chooses the tokens itself."""

    @pytest.fixture(scope="class")
    @classmethod
    def runtime(cls, smollm2: Path) -> Iterator[RuntimeDriver]:
        speculative = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
        options = json.dumps({**OPTIONS, "speculative_config": speculative})
        settings = load({**SETTINGS, "model": str(smollm2), "vllm_options": options}).settings
        with RuntimeDriver.of(settings, START_LIMIT_S) as driver:
            yield driver

    def test_a_takeover_of_a_greedy_answer_continues_it(self, runtime: RuntimeDriver) -> None:
        request = ask("red blue red blue red blue red", 12, ignore_eos=True)
        whole = runtime.answer(request)
        assert runtime.answer(again(request), whole.tokens[:5]).text() == whole.text()

    def test_what_could_not_be_continued_is_refused(self, runtime: RuntimeDriver) -> None:
        refused = runtime.answer(ask("red", 4, presence_penalty=1.0))
        assert refused.error is not None
        assert refused.error.param == "presence_penalty"
