"""The bound on a worker's load that policies with an affinity keep to, and the order of workers for a key."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from shared.routing.interface import RequestTraits, WorkerState

ALWAYS_ALLOWED = 2  # requests of the same size that a worker may have before another, whatever the mean


def below_bound(request: RequestTraits, workers: Sequence[WorkerState], bound: float) -> list[WorkerState]:
    """Return the workers with at most `bound` times the mean tokens in flight, in which the request counts.

    There is always one, since the least loaded worker has at most the mean. A worker with ALWAYS_ALLOWED requests
    like this one is not above the bound, or the few requests of an idle model would leave their worker.

    Mirrokni, Thorup, Zadimoghaddam: Consistent Hashing with Bounded Loads, 2016.
    """
    mean = (sum(worker.tokens_in_flight for worker in workers) + request.tokens) / len(workers)
    most = max(bound * mean, ALWAYS_ALLOWED * request.tokens)
    return [worker for worker in workers if worker.tokens_in_flight <= most]


def affinity(key: bytes, worker: WorkerState) -> bytes:
    """Return a worker's rank for a key; the highest wins (rendezvous hashing, Thaler and Ravishankar 1998).

    A worker that joins wins 1/n of the keys, from each of the others alike; no other key moves.
    """
    return hashlib.blake2b(worker.id.encode(), key=key[:64], digest_size=8).digest()
