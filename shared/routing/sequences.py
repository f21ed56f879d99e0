"""The worker of each sequence of requests to a model that keeps state between them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

from shared.protocol import SequenceStep
from shared.routing.interface import WorkerState
from shared.routing.load_bound import affinity

MAX_SEQUENCES = 65_536  # remembered; an older one goes where its id leads


class SequencePlaces:
    """Keeps a sequence on its worker while that takes requests.

    A new sequence goes to the worker that rendezvous hashing of its id chooses, so that all front ends choose the
    same one.
    """

    def __init__(self) -> None:
        self._places: OrderedDict[bytes, str] = OrderedDict()

    def place(self, tenant: str, step: SequenceStep, workers: Sequence[WorkerState]) -> str:
        """Return the id of one of `workers`, of which there is at least one."""
        name = f"{tenant}\0{type(step.id).__name__}\0{step.id}"
        key = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        place = self._places.pop(key, None)
        if place not in {worker.id for worker in workers}:
            place = max(workers, key=lambda worker: affinity(key, worker)).id
        if not step.end:
            self._places[key] = place
        if len(self._places) > MAX_SEQUENCES:
            self._places.popitem(last=False)
        return place
