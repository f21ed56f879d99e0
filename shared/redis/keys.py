"""Every Redis key and channel, and who owns it.

Keys that one Lua call touches share a hash tag, so that a Redis Cluster serves: a model's queues share one slot, a
request's state and log another.

| key | type | written by | lives |
| --- | --- | --- | --- |
| lane | sorted set per model, class, tenant: ids in order | API: publish, discard; worker: pull | until empty |
| waiting | hash per model: id -> what the request costs, and the request | the same | entry until pulled |
| lanes, resting | sorted sets per model and class: tenants by served tokens | the same | until nobody waits |
| overdue | sorted set per model: request ids by deadline | publish, acknowledge, sweeper | until it ends |
| reserved | hash, and sorted set, per model: on the way through Kafka | API: reserve; worker: publish | till then |
| accepted | hash per model: id -> where it waits or is held | publish, pull, acknowledge | until it ends |
| foreign | stream per slot: what another program wrote there and was set aside | any script | a week, 100 entries |
| queue | stream per model and class: what workers hold | worker: pull, acknowledge | entry until acknowledged |
| pullers | hash per model: worker -> its seats | pull | until another finds it silent, or `tidy` |
| counters | hash per model | publish, pull, discard | for ever, one per model |
| state | hash per request | API: create, cancel; worker: acquire, append | result TTL after the end |
| log | stream per request, entry id = last seq + 1 | worker: append; API: cancel | with its state |
| keepsake | string per stored response: what was asked, and its conversation | API: create | with its state |
| prompt | hash per running chat: the token ids of its prompt | worker: append | until it ends |
| worker | JSON per worker | that worker's heartbeat | three heartbeats |
| model | JSON per model | any of its workers | a day after the last worker |
| worker_exit | JSON per model: the last end of a worker | `headrace up` | until shortly after the restart |
| WORKERS, MODELS | sets of the ids and names | the same | until a reader finds the entry gone |
| hold | string per name: leaders, idempotency keys | whoever asks first | the time it asked for |
| files | by tenant a sorted set of ids; FILES: records, sizes, ends | API, tasks | until deleted or expired |
| batch | hash per batch, its items and their holders; by tenant and open: sorted sets | API, tasks | `batch_ttl` |
| WEBHOOKS_DUE, webhook | sorted set of ids by when they are due; hash of each | API | a while after its end |
| LEDGER, limit | hashes and a sorted set of open and ended requests; per limit what is used | API | as it says |
| DEAD_INDEX, DEAD_LETTERS | sorted set and hash of requests set aside | worker: add; API: remove | bounded |
"""

from __future__ import annotations

from functools import lru_cache

from shared.protocol import PriorityClass

GROUP = "workers"  # the consumer group of every queue
WORKERS = "hr:workers"
MODELS = "hr:models"
DEAD_INDEX = "hr:{dead}:index"
DEAD_LETTERS = "hr:{dead}:letters"
FILES = ("hr:{files}:records", "hr:{files}:sizes", "hr:{files}:ends")
OPEN_BATCHES = "hr:{batches}:open"
BATCH_WAKE = "hr:{batches}:wake"  # published to when a batch was made or cancelled, with its id
WEBHOOKS_DUE = "hr:{webhooks}:due"
WEBHOOK_PREFIX = "hr:{webhooks}:of:"  # and the id of the work that it is about
LEDGER = ("hr:{limits}:open", "hr:{limits}:due", "hr:{limits}:ended")
LIMIT_PREFIX = "hr:{limits}:of:"  # and the limit's name: the script makes the key, in the same slot
REMEMBERED = 256  # models whose keys are made once
STATES = "hr:{req_*}:state"  # pattern of all states
LIVE = "hr:live"  # nobody publishes to it: it keeps a connection without readers subscribed


def queue(model: str, priority: PriorityClass) -> str:
    return f"hr:{{q:{model}}}:{priority.value}"


@lru_cache(REMEMBERED)
def transport(model: str) -> tuple[str, ...]:
    """All that a model's queue is made of, as its script expects it; per class, most urgent first."""
    prefix = f"hr:{{q:{model}}}"
    single = [counters(model), f"{prefix}:waiting", f"{prefix}:overdue"]
    per_class = [f"{prefix}:{kind}:{priority.value}" for kind in ("lanes", "resting") for priority in PriorityClass]
    streams = [queue(model, priority) for priority in PriorityClass]
    rest = [f"{prefix}:{kind}" for kind in ("reserved", "reserved-at", "accepted", "pullers")]
    return (*single, *per_class, *streams, *rest)


def lane_prefix(model: str) -> str:
    """A lane's key is this, its class's number, a colon and its tenant: the script makes it, in the same slot."""
    return f"hr:{{q:{model}}}:lane:"


def counters(model: str) -> str:
    return f"hr:{{q:{model}}}:counters"


def wake_channel(model: str) -> str:
    """Published to when a queue of the model got something to pull."""
    return f"hr:{{q:{model}}}:wake"


def state(job_id: str) -> str:
    return f"hr:{{{job_id}}}:state"


def request_of(state_key: str) -> str:
    """Whose state that is."""
    return state_key[len("hr:{") : -len("}:state")]


def log(job_id: str) -> str:
    return f"hr:{{{job_id}}}:log"


def keepsake(job_id: str) -> str:
    return f"hr:{{{job_id}}}:keepsake"


def prompt(job_id: str) -> str:
    return f"hr:{{{job_id}}}:prompt"


def live_channel(job_id: str) -> str:
    """Carries each append of the request's log, as it is made."""
    return f"hr:{{{job_id}}}:live"


def notify_channel(name: str) -> str:
    """Carries the ids of requests that ended, to whoever asked to be told under that name."""
    return f"hr:notify:{name}"


def worker(worker_id: str) -> str:
    return f"hr:worker:{worker_id}"


def control_channel(worker_id: str) -> str:
    """Carries ids of requests that the worker must stop."""
    return f"hr:worker:{worker_id}:control"


def worker_exit(model_name: str) -> str:
    return f"hr:worker-exit:{model_name}"


def hold(name: str) -> str:
    return f"hr:hold:{name}"


def model(name: str) -> str:
    return f"hr:model:{name}"


def files_of(tenant: str) -> str:
    return f"hr:{{files}}:of:{tenant}"


def batches_of(tenant: str) -> str:
    return f"hr:{{batches}}:of:{tenant}"


def batch(batch_id: str) -> list[str]:
    """A batch's record, the items of its work by when they are free, and what is known of each."""
    return [f"hr:{{batches}}:{batch_id}:{part}" for part in ("record", "items", "chunks")]
