"""The rules on tokens against a slow reference, and their place in the sampler."""

from __future__ import annotations

import math

import msgspec
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.protocol import SamplingParams
from tests.support.checkpoints import DEVICE
from tests.support.sequences import make_sequence
from workers.engine.sampling import sampler
from workers.engine.sampling.rows import noise_key
from workers.engine.sampling.token_rules import TokenRules

VOCAB = 12
CPU = torch.device("cpu")
tokens = st.integers(0, VOCAB - 1)
logits = st.lists(st.one_of(st.just(-math.inf), st.floats(-5, 5)), min_size=VOCAB, max_size=VOCAB)
words = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple), max_size=4)


def reference(
    row: list[float],
    params: SamplingParams,
    bad_words: list[tuple[int, ...]],
    ends: set[int],
    output: list[int],
) -> list[float]:
    """Return the logits after each rule in turn; a rule that leaves no token changes nothing."""
    allowed, bad, early = params.allowed_token_ids, set(), len(output) < params.min_tokens
    for *before, last in bad_words:
        if output[len(output) - len(before) :] == before:
            bad.add(last)
    outside = set(range(len(row))) - set(allowed) if allowed else set()
    for forbidden in (outside, bad, ends if early else set()):
        left = [-math.inf if token in forbidden else value for token, value in enumerate(row)]
        row = left if max(left) > -math.inf else row
    return row


@given(
    row=logits,
    prompt=st.lists(st.integers(0, 3), min_size=1, max_size=3),
    output=st.lists(st.integers(0, 3), max_size=5),
    bad_words=words,
    allowed=st.lists(tokens, max_size=4),
    ends=st.sets(st.integers(0, VOCAB + 3), max_size=4),
    min_tokens=st.integers(0, 4),
)
def test_rules_forbid_the_same_tokens_as_the_reference(
    row: list[float],
    prompt: list[int],
    output: list[int],
    bad_words: list[tuple[int, ...]],
    allowed: list[int],
    ends: set[int],
    min_tokens: int,
) -> None:
    params = SamplingParams(allowed_token_ids=tuple(allowed), min_tokens=min_tokens)
    found = torch.tensor(row)
    TokenRules(params, bad_words, ends, vocab_size=VOCAB, device=CPU).apply(found, prompt + output, len(prompt))
    expected = reference(torch.tensor(row).tolist(), params, bad_words, ends, output)
    assert found.tolist() == expected


def test_rules_of_a_row_do_not_change_its_neighbours() -> None:
    logits = torch.randn(3, 3000, generator=torch.Generator().manual_seed(4)).to(DEVICE)
    warm = SamplingParams(temperature=1.0, seed=3)
    params = msgspec.structs.replace(warm, allowed_token_ids=(7, 9), min_tokens=5)
    rules = TokenRules(params, [(9,)], [9], vocab_size=3000, device=DEVICE)
    ruled = make_sequence(params, [1], [2], rules=rules)
    free = [make_sequence(warm, [1], [2]) for _ in range(3)]
    alone = sampler.sample(logits.clone(), free)
    together = sampler.sample(logits.clone(), [free[0], ruled, free[2]])
    assert together == [alone[0], 7, alone[2]]


def test_every_64_bit_seed_draws_its_own_tokens() -> None:
    seeds = [-1, -2, 0, 1, 2, -(2**63), 2**63 - 1]
    keys = [noise_key(seed, 0, position) for seed in seeds for position in range(50)]
    assert len(set(keys)) == len(keys)
    assert all(0 <= word < 2**32 for key in keys for word in key)
