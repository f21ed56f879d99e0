"""Arguments of vLLM's SamplingParams from those of a request."""

from __future__ import annotations

from typing import Any

import pytest

from shared.errors import InvalidRequest
from shared.protocol import SamplingParams, Structured
from tests.support.sequences import make_sequence
from workers.engine.echo import Echo
from workers.engine.interface import EngineRequest
from workers.runtimes.vllm.choice import Choice
from workers.runtimes.vllm.sampling_arguments import CHOICE, arguments_of, check_supported

EOS = 257


def choice(output: tuple[int, ...] = (), number: int = 0, **params: Any) -> Choice:
    sequence = make_sequence(SamplingParams(**params), [1, 2, 3], list(output), number)
    sequence.eos_token_ids = frozenset({EOS})
    sequence.max_tokens = params.get("max_tokens", 99)
    return Choice(f"r/{number}", sequence)


def test_our_sampler_leaves_vllm_nothing_to_draw() -> None:
    made = choice(temperature=0.7, top_p=0.5, seed=3, presence_penalty=1.0, logit_bias={5: 2.0}, min_tokens=4)
    arguments = arguments_of(made, native_sampling=True)
    assert arguments["temperature"] == 0.0
    assert arguments["extra_args"] == {CHOICE: made}
    assert not {"top_p", "seed", "presence_penalty", "logit_bias", "min_tokens"} & arguments.keys()


def test_vllm_ends_a_choice_at_the_tokens_that_end_it_here() -> None:
    assert arguments_of(choice(stop_token_ids=(9,)), native_sampling=True)["stop_token_ids"] == [9, EOS]
    assert arguments_of(choice(stop_token_ids=(9,), ignore_eos=True), native_sampling=True)["stop_token_ids"] == [9]


def test_a_continued_choice_has_what_is_left_of_its_tokens() -> None:
    arguments = arguments_of(choice((7, 8), max_tokens=10, min_tokens=5), native_sampling=False)
    assert (arguments["max_tokens"], arguments["min_tokens"]) == (8, 3)


def test_a_request_without_tokens_computes_one() -> None:
    assert arguments_of(choice(max_tokens=0), native_sampling=True)["max_tokens"] == 1


def test_only_an_echoing_choice_scores_the_prompt() -> None:
    echoing = choice(prompt_logprobs=3)
    assert arguments_of(echoing, native_sampling=True)["prompt_logprobs"] is None
    echoing.sequence.echo = Echo.from_params([1, 2, 3], echoing.sequence.params)
    assert arguments_of(echoing, native_sampling=True)["prompt_logprobs"] == 3


def test_vllm_gets_the_parameters_if_it_chooses_tokens() -> None:
    params = {"temperature": 0.7, "top_k": 5, "top_p": 0.5, "min_p": 0.1, "repetition_penalty": 1.3}
    arguments = arguments_of(choice(**params, logit_bias={5: 2.0}, allowed_token_ids=(5, 6)), native_sampling=False)
    assert arguments.items() >= params.items()
    assert (arguments["logit_bias"], arguments["allowed_token_ids"]) == ({5: 2.0}, [5, 6])
    assert arguments_of(choice(top_p=0.0), native_sampling=False)["top_p"] > 0


def test_each_choice_and_each_run_has_a_seed_of_its_own() -> None:
    seeds = {
        arguments_of(choice(output, number, seed=1), native_sampling=False)["seed"]
        for output in ((), (4,), (4, 5))
        for number in (0, 1)
    }
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("typical_p", 0.5),
        ("watermark", True),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -0.5),
        ("thinking_token_budget", 4),
        ("structured_outputs", Structured(json_object=True)),
    ],
)
def test_what_vllm_cannot_continue_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"^{name} is not supported") as caught:
        check_supported(EngineRequest("r", (1,), SamplingParams(**{name: value})))
    assert caught.value.param == name
    check_supported(EngineRequest("r", (1,), SamplingParams(temperature=0.5, repetition_penalty=1.1)))


def test_a_failing_step_logs_no_tokens() -> None:
    assert repr(choice((7, 8))) == "Choice(r/0)"
