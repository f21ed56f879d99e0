"""Division of the tokens that one step has for prompts between the tenants that wait for theirs."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Ordered

from workers.engine.sequence import Sequence


def share_prompt_budget(
    prompts: Ordered[Sequence], budget: int, weights: Mapping[str, float]
) -> dict[Sequence, int]:
    """Return how many tokens of each prompt the step computes, at most `budget` in all.

    The most urgent prompt goes first. A part of the budget (half of it if weights are equal) is kept for the first
    prompt of each other tenant of its class, the shortest first. So a short prompt never waits for a long one of
    another tenant, and few prompts are split. The remainder goes to all prompts, most urgent first.

    Args:
        prompts: most urgent first.
        weights: weights of tenants; the default is 1.
    """
    granted = dict.fromkeys(prompts, 0)
    others = sorted(_first_of_other_tenants(prompts), key=lambda prompt: prompt.num_uncomputed_tokens)
    if others:
        lead, other = (weights.get(prompt.tenant, 1.0) for prompt in (prompts[0], others[0]))
        kept = min(budget - 1, max(1, int(budget * other / (lead + other))))
        for prompt in others:
            granted[prompt] = max(0, min(prompt.num_uncomputed_tokens, kept))
            kept -= granted[prompt]
    left = budget - sum(granted.values())
    for prompt in prompts:
        more = max(0, min(prompt.num_uncomputed_tokens - granted[prompt], left))
        granted[prompt] += more
        left -= more
    return granted


def _first_of_other_tenants(prompts: Ordered[Sequence]) -> list[Sequence]:
    """Return the first prompt of each other tenant in the class of the most urgent prompt."""
    first: dict[str, Sequence] = {}
    for prompt in prompts:
        if prompt.rank == prompts[0].rank:
            first.setdefault(prompt.tenant, prompt)
    return list(first.values())[1:]
