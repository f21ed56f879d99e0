"""Response bodies of the admin port: requests, workers, the overview and the audit log. They never hold texts."""

from __future__ import annotations

from typing import Literal, Self

import msgspec

from shared.accounts.audit_log import Entry
from shared.models.worker_registry import WorkerInfo, WorkerState
from shared.queue.survey import Gate, QueueView
from shared.settings import RuntimeName
from shared.token_log.interface import RequestRecord


class RequestView(msgspec.Struct):
    """A request without its texts; times are in seconds since the epoch, by the server's clock.

    `finish` is the finish reason, or the code of the error that ended it. `source` is the Kafka record that it came
    from.
    """

    id: str
    model: str
    tenant: str
    priority: str
    state: str
    created_at: float
    started_at: float | None
    first_token_at: float | None
    finished_at: float | None
    deadline: float | None
    prompt_tokens: int
    completion_tokens: int
    finish: str
    source: str

    @classmethod
    def from_record(cls, record: RequestRecord) -> Self:
        names = [name for name in RequestView.__struct_fields__ if name not in ("priority", "state")]
        fields = {name: getattr(record, name) for name in names}
        return cls(priority=record.priority.value, state=record.state.value, **fields)


class RequestDetails(RequestView):
    """One request; while it waits, with its place in its class, from 1, and its expected wait in seconds.

    `timeline` is the path of its timeline.
    """

    timeline: str = ""
    position: int | None = None
    expected_wait: float | None = None


class RequestPage(msgspec.Struct):
    """Requests, newest first. A page may be short or empty although more follow, as long as it has a cursor."""

    data: list[RequestView]
    next_cursor: str | None


class WorkerView(msgspec.Struct):
    """A worker as of its last heartbeat.

    Attributes:
        seats: sequences that it runs at once.
        load: the share of them that its requests take.
        fault: why it takes no requests at present; empty if it takes them.
        kv_use: share of the KV cache in use; null without one.
        gpu_memory_used: bytes; null without a GPU.
        heartbeat_age: seconds.
    """

    id: str
    model: str
    state: WorkerState
    runtime: RuntimeName
    progress: float
    fault: str
    seats: int
    active_requests: int
    running: int
    waiting: int
    load: float | None
    kv_use: float | None
    tokens_per_s: float
    gpu_memory_used: int | None
    heartbeat_age: float | None

    @classmethod
    def from_info(cls, info: WorkerInfo) -> WorkerView:
        seats, blocks = info.max_num_seqs, info.blocks_total
        computed = {
            "seats": seats,
            "load": round(info.active_requests / seats, 4) if seats else None,
            "kv_use": round(info.blocks_used / blocks, 4) if blocks else None,
            "tokens_per_s": round(info.tokens_per_s, 2),
        }
        names = [name for name in cls.__struct_fields__ if name not in computed]
        return cls(**computed, **{name: getattr(info, name) for name in names})  # type: ignore[arg-type]


class WorkerList(msgspec.Struct):
    data: list[WorkerView]


class QueueList(msgspec.Struct):
    """Queues by model; `truncated` if there are more."""

    data: list[QueueView]
    truncated: bool


class GateState(msgspec.Struct):
    """State of a model's queue, or of one tenant in it."""

    model: str
    tenant: str | None
    state: Gate


class ModelSummary(msgspec.Struct):
    """A model; `workers` counts all that have announced themselves, `ready` those that take requests."""

    name: str
    task: str | None
    asleep: bool
    workers: int
    ready: int


class Overview(msgspec.Struct):
    """The whole installation at the time `at`, in seconds since the epoch by the server's clock."""

    at: float
    models: list[ModelSummary]
    queues: list[QueueView]
    workers: list[WorkerView]
    recent: list[RequestView]
    truncated: bool
    object: Literal["overview"] = "overview"


class AuditPage(msgspec.Struct):
    """Administrative actions, newest first."""

    data: list[Entry]
    next_cursor: str | None
