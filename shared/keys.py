"""Every Redis key and channel, and who owns it.

Keys that one Lua call touches share a hash tag, so that a Redis Cluster serves: a model's queues share one slot, a
request's state and log another.

| key | type | written by | lives |
| --- | --- | --- | --- |
| queue | stream per model and class | API: enqueue; worker: acknowledge | entry until acknowledged |
| counters | hash per model: added:<class>, pulled:<class> | enqueue, pull | for ever, one per model |
| state | hash per request | API: create, cancel; worker: acquire, append | result TTL after the end |
| log | stream per request, entry id = last seq + 1 | worker: append; API: cancel | with its state |
| worker | JSON per worker | that worker's heartbeat | three heartbeats |
| model | JSON per model | any of its workers | a day after the last worker |
| WORKERS, MODELS | sets of the ids and names | the same | until a reader finds the entry gone |
"""

from __future__ import annotations

from shared.protocol import PriorityClass

GROUP = "workers"  # the consumer group of every queue
WORKERS = "hr:workers"
MODELS = "hr:models"
LIVE = "hr:live"  # nobody publishes to it: it keeps a connection without readers subscribed


def queue(model: str, priority: PriorityClass) -> str:
    return f"hr:{{q:{model}}}:{priority.value}"


def queues(model: str) -> list[str]:
    """A model's queues, most urgent first."""
    return [queue(model, priority) for priority in PriorityClass]


def counters(model: str) -> str:
    return f"hr:{{q:{model}}}:counters"


def wake_channel(model: str) -> str:
    """Published to when a queue of the model got something to pull."""
    return f"hr:{{q:{model}}}:wake"


def state(request_id: str) -> str:
    return f"hr:{{{request_id}}}:state"


def log(request_id: str) -> str:
    return f"hr:{{{request_id}}}:log"


def live_channel(request_id: str) -> str:
    """Carries each append of the request's log, as it is made."""
    return f"hr:{{{request_id}}}:live"


def worker(worker_id: str) -> str:
    return f"hr:worker:{worker_id}"


def control_channel(worker_id: str) -> str:
    """Carries ids of requests that the worker must stop."""
    return f"hr:worker:{worker_id}:control"


def model(name: str) -> str:
    return f"hr:model:{name}"
