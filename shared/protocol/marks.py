"""Marks of a request's way through queue and worker, from which its timeline follows."""

from __future__ import annotations

import msgspec


class Backlog(msgspec.Struct, frozen=True, array_like=True):
    """Work in the queue of a model beside one request. It names no other tenant, and contains counts alone.

    Attributes:
        position: place in its class, from 1; an estimate if several tenants take turns.
        by_class: waiting requests of each class, the most urgent first.
        own: those of them that are of the request's tenant.
        tenants: tenants that take turns in its class, its own included.
        tokens, own_tokens: tokens of all waiting requests, and of its tenant's, by `token_estimate`.
    """

    position: int
    by_class: tuple[int, int, int]
    own: int
    tenants: int
    tokens: int
    own_tokens: int


class Stay(msgspec.Struct, frozen=True, array_like=True):
    """A request's stay in its lane, which the queue records. Times are in seconds since the epoch, by its server.

    Attributes:
        entered: when it entered the lane.
        backlog: what else waited then; None if nothing did.
        positions: times, and the place in its class then, from 1, as it turned out: one more than the requests of
            its class that were taken before it from then on.
        pauses: from when until when the model's queue, or its tenant's, was paused; None while it is.
    """

    entered: float
    backlog: Backlog | None = None
    positions: tuple[tuple[float, int], ...] = ()
    pauses: tuple[tuple[float, float | None], ...] = ()


class RunMark(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A worker's measurements of one run, in seconds. Each later mark of a run replaces the one before.

    Attributes:
        cached_tokens: tokens of the prompt that were found in the prefix cache.
        prepared: from the lease until the engine had the request: chat template, tokenizing, grammar.
        waited: from then until the engine started it.
        preemptions: how often a choice of it was preempted.
        preempted: for how long at least one choice was.
        preempted_early: the part of `preempted` before the first token of the run.
    """

    cached_tokens: int = 0
    prepared: float = 0.0
    waited: float = 0.0
    preemptions: int = 0
    preempted: float = 0.0
    preempted_early: float = 0.0
