"""All Redis keys and channels.

Keys that one Lua call touches share a hash tag, as a Redis Cluster requires: a model's queue has one slot, a
request's state and log another.

| key | type | written by | lives until |
| --- | --- | --- | --- |
| lane | sorted set per model, class, tenant: ids in order | API: publish, discard; worker: pull | empty |
| arrivals | the same ids by time of arrival | the same | empty |
| waiting | hash per model: id -> cost and request | the same | entry: pulled |
| lanes, resting | sorted sets per model and class: tenants by served tokens | the same | nothing waits |
| overdue | sorted set per model: request ids by deadline | publish, acknowledge, sweeper | the request ends |
| reserved | hash and sorted set per model: requests in Kafka | API: reserve; worker: publish | published |
| accepted | hash per model: id -> where it waits or is held | publish, pull, acknowledge | the request ends |
| foreign | stream per slot: foreign data that was set aside | any script | a week, 100 entries |
| queue | stream per model and class: held requests | worker: pull, acknowledge | entry: acknowledged |
| pullers | hash per model: worker -> its seats | pull | found silent, or `tidy` |
| routes | hash per model: id -> cost, time, worker it is aimed at or held by | publish, pull | the request ends |
| aimed | sorted set per model, class, worker, tenant: ids in order | publish, pull, discard | empty |
| in-flight, seen | hashes per model: worker -> its tokens, its last call | publish; workers | it leaves; `tidy` |
| gates | hash per model: tenant, or '' for the model -> paused or draining | API: admin port | opened again |
| recent | stream per model: the last 10,000 requests' ids | publish | forever, one per model |
| served | sorted set per model and minute: class and tenant by tokens | pull | three minutes |
| AUDIT | stream: the last 10,000 administrative actions | API: admin port | bounded |
| counters | hash per model | publish, pull, discard | forever, one per model |
| state | hash per request | API: create, cancel; worker: acquire, append | result TTL after the end |
| log | stream per request, entry id = last seq + 1 | worker: append; API: cancel | with its state |
| keepsake | string per stored response: its request and conversation | API: create | with its state |
| prompt | hash per running chat: the token ids of its prompt | worker: append | the request ends |
| worker | JSON per worker | that worker's heartbeat | a lease; three while it loads |
| model | JSON per model | any of its workers | a day after the last worker |
| worker_exit | JSON per model: the last end of a worker | `headrace up` | shortly after the restart |
| WORKER_EXITS | hash: cause and model -> how many workers ended | `headrace up` | forever, three per model |
| WORKERS, MODELS | sets of the ids and names | the same | a reader finds the entry gone |
| drain_order | string per worker: how it shall leave | `headrace worker drain` | an hour |
| ASLEEP | set of the models that were put to sleep | API: sleep, wake | woken |
| hold | string per lock: leaders, idempotency keys | the owner | its ttl |
| files | by tenant a sorted set of ids; FILES: records, sizes, ends | API, tasks | deleted or expired |
| batch | hash per batch, its items and their holders; by tenant and open: sorted sets | API, tasks | `batch_ttl` |
| WEBHOOKS_DUE, webhook | sorted set of ids by due time; hash of each | API | `result_ttl` after its end |
| ORDERS | hashes per model: its last order, and that order's id | API | forever, one per model |
| order_result | JSON per order | worker: answer | an hour |
| loads | set per version that is loaded: the workers that load it | worker: begin, end | empty, or a day |
| REPOSITORY_PREFIX | JSON per worker: the statuses of its models | worker: report | as its heartbeat |
| SPLITS, SHADOWS | hashes by name: where its traffic goes, and copies of it | API | removed |
| ADAPTERS | hash by name: LoRA adapters that requests may name | worker: register; API: remove | removed |
| adapter_result | JSON per order to load an adapter | worker: answer | an hour |
| shadow_pairs | list per name: requests and their copies | API | a week after the last, 1,000 entries |
| REPOSITORY_WORKERS | set of the ids | the same | a reader finds the entry gone |
| LEDGER, limit | hashes and sorted set of open and ended requests; usage per limit | API | recorded; window ends |
| kv_index, kv_value | sorted set of names by last use; one KV block each | worker | `kv_tier_ttl` after use |
| DEAD_INDEX, DEAD_LETTERS | sorted set and hash of dead letters | worker: add; API: remove | bounded |
"""

from __future__ import annotations

from functools import lru_cache

from shared.protocol import PriorityClass

GROUP = "workers"  # the consumer group of every queue
WORKERS = "hr:workers"
WORKER_EXITS = "hr:worker-exits"
MODELS = "hr:models"
ASLEEP = "hr:asleep"
AUDIT = "hr:audit"
DRAIN_WAKE = "hr:drain-wake"  # tells the workers that one of them was ordered to leave
DEAD_INDEX = "hr:{dead}:index"
DEAD_LETTERS = "hr:{dead}:letters"
FILES = ("hr:{files}:records", "hr:{files}:sizes", "hr:{files}:ends")
OPEN_BATCHES = "hr:{batches}:open"
BATCH_WAKE = "hr:{batches}:wake"  # carries the ids of batches that were created or cancelled
WEBHOOKS_DUE = "hr:{webhooks}:due"
WEBHOOK_PREFIX = "hr:{webhooks}:of:"  # followed by the id of the job or batch
LEDGER = ("hr:{limits}:open", "hr:{limits}:due", "hr:{limits}:ended")
LIMIT_PREFIX = "hr:{limits}:of:"  # followed by the limit's name, by the script; in the same slot
ORDERS = ("hr:{repository}:orders", "hr:{repository}:order-ids")
REPOSITORY_WORKERS = "hr:{repository}:workers"
REPOSITORY_PREFIX = "hr:{repository}:of:"  # followed by the id of a worker
SPLITS, SHADOWS = "hr:{traffic}:splits", "hr:{traffic}:shadows"
ADAPTERS = "hr:{adapters}:known"
REPOSITORY_WAKE = "hr:{repository}:wake"  # tells the workers that an order was placed
CACHED_MODELS = 256
STATES = "hr:{req_*}:state"  # matches all states
LIVE = "hr:live"  # without messages; keeps a connection subscribed that has no readers


def queue(model: str, priority: PriorityClass) -> str:
    return f"hr:{{q:{model}}}:{priority.value}"


@lru_cache(CACHED_MODELS)
def transport(model: str) -> tuple[str, ...]:
    """Return the keys of a model's queue in its script's order; per class, the most urgent first."""
    prefix = f"hr:{{q:{model}}}"
    single = [counters(model), f"{prefix}:waiting", f"{prefix}:overdue"]
    per_class = [f"{prefix}:{kind}:{priority.value}" for kind in ("lanes", "resting") for priority in PriorityClass]
    streams = [queue(model, priority) for priority in PriorityClass]
    kinds = ("reserved", "reserved-at", "accepted", "pullers", "routes", "in-flight", "seen", "gates")
    return (*single, *per_class, *streams, *(f"{prefix}:{kind}" for kind in (*kinds, "recent")))


def lane_prefix(model: str) -> str:
    """Return the prefix of lane keys; the script appends class, colon and tenant, in the same slot.

    For the requests of a lane by arrival, it appends `arrivals`, class and tenant; for those that are aimed at one
    worker, `aimed`, class, worker and tenant; for the tokens served in a minute, `served` and that minute.
    """
    return f"hr:{{q:{model}}}:lane:"


def counters(model: str) -> str:
    return f"hr:{{q:{model}}}:counters"


def wake_channel(model: str) -> str:
    """Return the channel that announces requests to pull."""
    return f"hr:{{q:{model}}}:wake"


def state(job_id: str) -> str:
    return f"hr:{{{job_id}}}:state"


def request_of(state_key: str) -> str:
    """Return the job id of a state key."""
    return state_key[len("hr:{") : -len("}:state")]


def log(job_id: str) -> str:
    return f"hr:{{{job_id}}}:log"


def answer(job_id: str) -> tuple[str, str]:
    """Return the keys of the state and the log."""
    return f"hr:{{{job_id}}}:state", f"hr:{{{job_id}}}:log"


def keepsake(job_id: str) -> str:
    """Return a key in the slot of the state, from whose name the script makes it."""
    return f"hr:{{{job_id}}}:keepsake"


def prompt(job_id: str) -> str:
    """Return a key in the slot of the state, from whose name the script makes it."""
    return f"hr:{{{job_id}}}:prompt"


def recording(job_id: str) -> str:
    """Return a key in the slot of the state, from whose name the script makes it."""
    return f"hr:{{{job_id}}}:recording"


def live_channel(job_id: str) -> str:
    """Return the channel that carries each append to the request's log."""
    return f"hr:{{{job_id}}}:live"


def notify_channel(name: str) -> str:
    """Return the channel that carries the ids of ended requests to the process of that name."""
    return f"hr:notify:{name}"


def kv_index(scope: str, part: int) -> str:
    """Return the index of a part of the KV tier, in the slot of its values."""
    return f"hr:{{kv:{scope}:{part}}}:index"


def kv_value(scope: str, part: int, name: str) -> str:
    """Return the key of a block; the script makes those of other blocks of the part from it."""
    return f"hr:{{kv:{scope}:{part}}}:block:{name}"


def worker(worker_id: str) -> str:
    return f"hr:worker:{worker_id}"


def control_channel(worker_id: str) -> str:
    """Return the channel that carries ids of requests that the worker must stop."""
    return f"hr:worker:{worker_id}:control"


def drain_order(worker_id: str) -> str:
    return f"hr:worker:{worker_id}:drain"


def worker_exit(model_name: str) -> str:
    return f"hr:worker-exit:{model_name}"


def hold(name: str) -> str:
    return f"hr:hold:{name}"


def model(name: str) -> str:
    return f"hr:model:{name}"


def shadow_pairs(name: str) -> str:
    return f"hr:{{traffic}}:pairs:{name}"


def adapter_orders(model_name: str) -> str:
    """Return the channel that carries the orders to load and unload adapters of a model."""
    return f"hr:{{adapters}}:orders:{model_name}"


def adapter_result(order_id: str) -> str:
    return f"hr:{{adapters}}:result:{order_id}"


def order_result(order_id: str) -> str:
    return f"hr:{{repository}}:result:{order_id}"


def loads(load: str) -> str:
    return f"hr:{{repository}}:loads:{load}"


def files_of(tenant: str) -> str:
    return f"hr:{{files}}:of:{tenant}"


def batches_of(tenant: str) -> str:
    return f"hr:{{batches}}:of:{tenant}"


def batch(batch_id: str) -> list[str]:
    """Return the keys of a batch: its record, its items by the end of their leases, their details."""
    return [f"hr:{{batches}}:{batch_id}:{part}" for part in ("record", "items", "chunks")]
