"""Prompts of several tenants share the tokens of a step."""

from __future__ import annotations

from tests.support.scheduler_driver import INTERACTIVE, STANDARD, compute, make_scheduler, make_sequence, step


def test_short_prompt_does_not_wait_for_another_tenant() -> None:
    """While a long prompt is computed, another tenant's prompt is in the next step; the same tenant's waits."""
    scheduler = make_scheduler()
    scheduler.add(make_sequence(0, 100, tenant="long"))
    assert step(scheduler) == {0: 16}
    scheduler.add(make_sequence(1, 6, tenant="long"))
    scheduler.add(make_sequence(2, 6, tenant="short"))
    assert step(scheduler) == {0: 10, 2: 6}
    assert step(scheduler) == {0: 15, 2: 1}


def test_long_prompts_of_two_tenants_share_a_step() -> None:
    scheduler = make_scheduler()
    for order, tenant in enumerate("ab"):
        scheduler.add(make_sequence(order, 24, tenant=tenant))
    assert [step(scheduler) for _ in range(3)] == [{0: 8, 1: 8}] * 3


def test_prompts_of_one_tenant_are_not_split() -> None:
    scheduler = make_scheduler()
    for order in range(3):
        scheduler.add(make_sequence(order, 16))
    assert step(scheduler) == {0: 16}
    assert step(scheduler) == {0: 1, 1: 15}


def test_more_urgent_class_does_not_share_with_a_lower_one() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_sequence(0, 40, INTERACTIVE, tenant="a"))
    scheduler.add(make_sequence(1, 4, STANDARD, tenant="b"))
    assert step(scheduler) == {0: 16}
    assert step(scheduler) == {0: 16}
    assert step(scheduler) == {0: 8, 1: 4}


def test_short_prompt_starts_within_three_steps() -> None:
    """Given long prompts of 20 tenants, few are split, and a newcomer has its first token within three steps."""
    scheduler = make_scheduler(blocks=1000)
    for order in range(20):
        scheduler.add(make_sequence(order, 100, tenant=f"long-{order}"))
    for order in range(20, 60):
        for _ in range(3):
            assert sum(tokens > 1 for tokens in step(scheduler).values()) <= 3
        newcomer = make_sequence(order, 1 + order % 8, tenant=f"short-{order}")
        scheduler.add(newcomer)
        for _ in range(3):
            compute(scheduler)
        assert newcomer.num_output_tokens > 0
        scheduler.remove([s for s in scheduler.running if s.num_output_tokens])
