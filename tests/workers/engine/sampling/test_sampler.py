"""The batched sampler against a simple one that works row by row."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
import torch
from transformers import TypicalLogitsWarper

from shared.protocol import SamplingParams
from shared.validation.request_limits import Limits, check_params
from shared.validation.sampling_parameters import MIN_REPETITION_PENALTY
from tests.support.checkpoints import DEVICE
from tests.support.sequences import make_sequence
from workers.engine.sampling import sampler, torch_rows
from workers.engine.sampling.rows import MIN_TEMPERATURE, noise_key
from workers.engine.sampling.typical import keep_typical

VOCAB = 3000


def reference_kept(probs: torch.Tensor, params: SamplingParams) -> set[int]:
    """Return the tokens that pass top-k, then top-p, and min-p."""
    order = probs.argsort(descending=True).tolist()
    kept = order[: params.top_k or len(order)]
    mass = sum(probs[i].item() for i in kept) if params.top_k else 1.0
    if params.top_p < 1.0:
        ahead = [0.0, *itertools.accumulate(probs[i].item() for i in kept)]
        kept = [i for i, before in zip(kept, ahead, strict=False) if before < params.top_p * mass]
    return {i for i in kept if probs[i] >= params.min_p * probs.max()}


@pytest.mark.parametrize("spread", [0.01, 3.0])
@pytest.mark.parametrize("top_k", [0, 50])
@pytest.mark.parametrize("typical_p", [0.05, 0.5, 0.95])
def test_typical_p_keeps_the_same_tokens_as_transformers(spread: float, top_k: int, typical_p: float) -> None:
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(6)) * spread
    if top_k:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    found = keep_typical(logits.softmax(-1), [SamplingParams(typical_p=typical_p)] * 4)
    expected = TypicalLogitsWarper(typical_p)(torch.zeros(4, 1), logits.double()).isfinite()
    assert torch.equal(found > 0, expected)


def test_typical_p_leaves_the_most_likely_token_out() -> None:
    """Many tokens of average information are typical, a likely one is not; rows without typical_p keep all."""
    probs = torch.tensor([[0.2, *[0.04] * 20]] * 2)
    kinds = [SamplingParams(typical_p=0.5, seed=1), SamplingParams(seed=1)]
    assert (keep_typical(probs, kinds)[:, 0] > 0).tolist() == [False, True]
    drawn = {
        token
        for seed in range(40)
        for token in sampler.sample(
            probs.log(), [make_sequence(msgspec.structs.replace(kind, seed=seed), [1], []) for kind in kinds]
        )[:1]
    }
    assert len(drawn) > 5
    assert 0 not in drawn


@pytest.mark.parametrize("spread", [0.01, 3.0])
@pytest.mark.parametrize("top_k", [0, 1, 40, 2000])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("min_p", [0.0, 0.2])
def test_filters_keep_the_same_tokens_as_the_reference(
    spread: float, top_k: int, top_p: float, min_p: float
) -> None:
    """Flat rows (small spread) need more tokens than are sorted first."""
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(5)) * spread
    params = SamplingParams(top_k=top_k, top_p=top_p, min_p=min_p)
    probs = logits.softmax(-1)
    least = torch_rows.thresholds(probs, [params] * 4)
    for row, threshold in zip(probs, least, strict=True):
        kept = set((row >= threshold).nonzero()[:, 0].tolist())
        expected = reference_kept(row, params)
        # sums in another precision may move the border by one token in a thousand
        assert len(kept ^ expected) <= max(1, len(expected) // 1000)


def test_draws_follow_the_distribution() -> None:
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    params = SamplingParams(temperature=2.0)
    sequences = [make_sequence(msgspec.structs.replace(params, seed=seed), [0], []) for seed in range(20_000)]
    logits = (probs.log() * 2.0).expand(len(sequences), 4).clone()
    counts = torch.bincount(torch.tensor(sampler.sample(logits, sequences)), minlength=4) / len(sequences)
    torch.testing.assert_close(counts, probs, atol=0.012, rtol=0)


def test_draw_depends_only_on_seed_choice_and_position() -> None:
    keys = [noise_key(*key) for key in itertools.product(range(20), range(8), range(100))]
    assert len(set(keys)) == len(keys)
    cpu = torch.device("cpu")
    together = torch_rows.exponentials(keys[:64], VOCAB, cpu)
    assert torch.equal(together[7:8], torch_rows.exponentials(keys[7:8], VOCAB, cpu))
    assert torch.equal(together[:, :9], torch_rows.exponentials(keys[:64], 9, cpu))


def test_every_position_has_its_own_draw() -> None:
    """Given the same flat logits at 30 positions, the tokens differ, in the same way each time."""
    params = SamplingParams(temperature=1.0, seed=9)
    sequences = [make_sequence(params, [1], [2] * position) for position in range(30)]
    drawn = sampler.sample(torch.zeros(30, VOCAB), sequences)
    assert len(set(drawn)) > 25
    assert drawn == sampler.sample(torch.zeros(30, VOCAB), sequences)


def test_noise_is_exponential_and_uncorrelated() -> None:
    keys = [noise_key(5, 0, position) for position in range(400)]
    noise = torch_rows.exponentials(keys, VOCAB, torch.device("cpu"))
    assert noise.min() > 0
    # mean and deviation of the distribution are 1, over tokens and over positions
    for axis in (0, 1):
        assert abs(noise.mean(axis).mean().item() - 1) < 0.01
        assert abs(noise.std(axis).mean().item() - 1) < 0.02
    centred = noise - 1
    for shifted in (centred[1:, :] * centred[:-1, :], centred[:, 1:] * centred[:, :-1]):
        assert abs(shifted.mean().item()) < 0.005


def test_extreme_noise_never_draws_a_filtered_token() -> None:
    """Given a seed for which one token's bits are all ones, the only token that top-k keeps is drawn."""
    seed, vocab = 367, 49152
    logits = torch.zeros(1, vocab)
    logits[0, 11] = 1.0
    params = SamplingParams(temperature=1.0, top_k=1, seed=seed)
    assert torch_rows.exponentials([noise_key(seed, 0, 0)], vocab, logits.device).min() > 0
    assert sampler.sample(logits, [make_sequence(params, [1], [])]) == [11]


def test_draws_are_the_same_on_every_device() -> None:
    logits = torch.randn(300, VOCAB, generator=torch.Generator().manual_seed(2)) * 3
    kinds = [SamplingParams(temperature=0.7, top_p=0.9), SamplingParams(temperature=1.2, top_k=40, min_p=0.05)]
    kinds.append(SamplingParams(temperature=1.0, repetition_penalty=1.3, logit_bias={5: 2.0}))
    kinds.append(SamplingParams(temperature=0.9, typical_p=0.8))
    sequences = [make_sequence(msgspec.structs.replace(kinds[i % 4], seed=i), [1, 9], [3]) for i in range(300)]
    assert sampler.sample(logits.clone().to(DEVICE), sequences) == sampler.sample(logits.clone(), sequences)


def test_greedy_rows_beside_sampled_ones() -> None:
    logits = torch.randn(3, VOCAB)
    greedy, warm = SamplingParams(temperature=0.0), SamplingParams(temperature=1.0, seed=3)
    together = sampler.sample(logits.clone(), [make_sequence(p, [1], [2]) for p in (greedy, warm, greedy)])
    assert together[0] == logits[0].argmax()
    assert together[2] == logits[2].argmax()
    assert together[1] == sampler.sample(logits[1:2].clone(), [make_sequence(warm, [1], [2])])[0]


def test_top_p_of_zero_is_greedy() -> None:
    """The first of equally likely tokens is taken, as at temperature 0."""
    logits = torch.zeros(1, VOCAB)
    params = SamplingParams(temperature=2.0, top_p=0.0, seed=3)
    assert sampler.sample(logits, [make_sequence(params, [1], [])]) == [0]


def test_penalties_match_transformers_and_openai() -> None:
    logits = torch.tensor([[2.0, 1.0, -1.0, 0.5, 0.4]])
    params = SamplingParams(repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.5)
    sampler._penalize(logits[0], make_sequence(params, [0, 2], [1, 1, 3]))
    expected = [1.0, 0.5 - 0.25 - 1.0, -2.0, 0.25 - 0.25 - 0.5, 0.4]
    torch.testing.assert_close(logits[0], torch.tensor(expected))


def test_rows_that_are_not_finite_draw_nothing() -> None:
    logits = torch.zeros(5, 10)
    logits[1, 4], logits[2, 4], logits[3] = torch.nan, torch.inf, -torch.inf
    logits[4, :9] = -torch.inf  # only one token possible: fine
    for params in (SamplingParams(temperature=0.0), SamplingParams(temperature=1.0, top_p=0.5)):
        drawn = sampler.sample(logits.clone(), [make_sequence(params, [1], []) for _ in range(5)])
        assert drawn[1:4] == [None, None, None]
        assert drawn[0] is not None
        assert drawn[4] == 9


EXTREMES: dict[str, list[Any]] = {
    "temperature": [0.0, 5e-324, MIN_TEMPERATURE, 100.0],
    "top_p": [0.0, 5e-324, 1 - 2**-53],
    "min_p": [5e-324, 1.0],
    "typical_p": [5e-324, 1 - 2**-53],
    "top_k": [1, 1_000_000],
    "presence_penalty": [-100.0, -5e-324, 5e-324, 100.0],
    "frequency_penalty": [-100.0, 5e-324, 100.0],
    "repetition_penalty": [MIN_REPETITION_PENALTY, 1 - 2**-53, 100.0],
    "logit_bias": [{5: -100.0}, {5: 5e-324}, {5: 100.0}],
}


@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_parameters_still_draw_a_token(name: str) -> None:
    """At the default and at the lowest temperature, with the extremes that requests may ask for."""
    logits = torch.randn(1, VOCAB, device=DEVICE) * 50
    for value, temperature in itertools.product(EXTREMES[name], (1.0, MIN_TEMPERATURE)):
        params = SamplingParams(**{"seed": 1, "temperature": temperature, name: value})
        check_params(params, Limits())
        [token] = sampler.sample(logits.clone(), [make_sequence(params, [1, 2, 3], [4, 5])])
        assert token is not None, (name, value)
