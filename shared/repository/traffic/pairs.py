"""Pairs of a request and its shadow copy: how far their outputs agree, and how long they took.

Outputs themselves are not kept: they belong to the caller.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import msgspec

from shared.protocol import RequestState

P95 = 0.95


class Side(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request of a pair.

    Attributes:
        version: that computed it, "" if its model has none.
        error: code of the error that it failed with.
        run_s: seconds from its start on a worker to its end; None if it did not start. The wait before it is not
            compared, since copies wait in class batch.
    """

    model: str
    version: str = ""
    state: RequestState
    error: str = ""
    run_s: float | None = None


class Agreement(msgspec.Struct, frozen=True, omit_defaults=True):
    """Agreement of two outputs.

    Attributes:
        exact: they are the same.
        max_difference: largest absolute difference between numbers; None if they cannot be compared.
        labels_agree: the largest number of each row is at the same place; None for outputs without classes.
    """

    exact: bool
    max_difference: float | None = None
    labels_agree: bool | None = None


class Pair(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request and its shadow copy. `at` is the copy's end, in seconds since the epoch by the server's clock.

    `agreement` is None unless both completed.
    """

    at: float
    original: Side
    shadow: Side
    agreement: Agreement | None = None


class Latency(msgspec.Struct, frozen=True):
    """Seconds on the workers; None without a completed request."""

    median: float | None
    p95: float | None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Summary of the recorded pairs of a name.

    Attributes:
        pairs: number of all; `compared`: of those that both completed.
        original_failed, shadow_failed: requests that failed or were cancelled.
        exact, labels_agree: shares of the compared pairs that have the property, 0 to 1; None without any.
        max_difference: the largest of all; None if no outputs are numbers.
    """

    name: str
    pairs: int
    compared: int
    original_failed: int
    shadow_failed: int
    exact: float | None
    labels_agree: float | None
    max_difference: float | None
    original_latency: Latency
    shadow_latency: Latency


def summarize(name: str, pairs: Sequence[Pair]) -> Comparison:
    """Return the summary of a name's pairs."""
    found = [pair.agreement for pair in pairs if pair.agreement is not None]
    labels = [each.labels_agree for each in found if each.labels_agree is not None]
    differences = [each.max_difference for each in found if each.max_difference is not None]
    return Comparison(
        name=name,
        pairs=len(pairs),
        compared=len(found),
        original_failed=sum(pair.original.state is not RequestState.COMPLETED for pair in pairs),
        shadow_failed=sum(pair.shadow.state is not RequestState.COMPLETED for pair in pairs),
        exact=_share([each.exact for each in found]),
        labels_agree=_share(labels),
        max_difference=max(differences, default=None),
        original_latency=_latency([pair.original for pair in pairs]),
        shadow_latency=_latency([pair.shadow for pair in pairs]),
    )


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _latency(sides: Sequence[Side]) -> Latency:
    found = sorted(side.run_s for side in sides if side.run_s is not None and side.state is RequestState.COMPLETED)
    if not found:
        return Latency(None, None)
    return Latency(statistics.median(found), found[math.ceil(P95 * len(found)) - 1])
