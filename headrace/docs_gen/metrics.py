"""docs/metrics.md, generated from the declarations of the metrics: `scripts/metrics-doc`."""

from __future__ import annotations

from collections.abc import Iterable

from shared.metrics.api import API
from shared.metrics.common import COMMON, GPU, KAFKA, KAFKA_ERRORS
from shared.metrics.declaration import Declaration
from shared.metrics.tasks import TASKS
from shared.metrics.worker import WORKER

HEAD = """# Metrics

Three kinds of process show metrics in Prometheus' format, at `/metrics`:

| process | port |
| --- | --- |
| API | `admin_port`, on `admin_host` |
| worker | `metrics_port`, on `host` |
| batch runner | `tasks_metrics_port`, on `host` |

Times are in seconds, amounts of memory in bytes, ratios from 0 to 1. Counters count since their process started. A
histogram adds `_bucket`, `_sum` and `_count` to its name. For the 99th percentile of the time to the first token:

    histogram_quantile(0.99, sum by (le, model) (rate(headrace_api_time_to_first_token_seconds_bucket[5m])))

Label values are bounded: `model` is a model that is served, `class` is `interactive`, `standard` or `batch` (empty
for what is not a request to a model), `route` is a path template, empty for unknown paths. Names of users, paths as
they were sent, and methods are no labels. One metric has at most 1000 series; further ones are counted together
under the label value `other`.

The levels of queues are absent while Redis cannot be reached, and `headrace_queue_wait_estimate_seconds` if nothing
was pulled for 150 s. `metrics_port` serves 16 connections at a time; a further one ends the oldest.

With `triton_metrics`, a worker of a model repository also shows Triton's metrics (`nv_…`).

## vLLM's names

With the setting `metrics_names` = `both`, a worker also shows what vLLM shows, under vLLM's names and with vLLM's
buckets; with `vllm`, only that and the metrics of the last table. So Grafana boards for vLLM, KServe and the
endpoint picker of the Kubernetes Gateway API find the names that they read. The labels are `model_name` and
`engine`, which is always `0`; classes are added up. Requests that wait in the queue have no worker yet:
`vllm:num_requests_waiting` counts those that a worker has pulled. Scale workers by `headrace_queue_waiting` of
the API instead, less `headrace_queue_paused`.
"""


def render() -> str:
    """Return the page."""
    parts = [HEAD]
    for title, declarations in (
        ("API", API),
        ("API with the queue `kafka`", (KAFKA_ERRORS,)),
        ("Worker", WORKER),
        ("Worker with GPUs (`headrace[gpu]`)", GPU),
        ("Worker with Kafka", KAFKA),
        ("Batch runner", TASKS),
        ("All three", COMMON),
    ):
        parts += [f"\n## {title}\n\n", *_table(declarations)]
    parts.append(
        "\nEach also shows `process_cpu_seconds_total`, `process_resident_memory_bytes` and the other metrics of\n"
        "prometheus_client about its process, on Linux.\n"
    )
    return "".join(parts)


def _table(declarations: Iterable[Declaration]) -> list[str]:
    rows = ["| metric | type | labels | description | vLLM's name |\n| --- | --- | --- | --- | --- |\n"]
    for each in declarations:
        labels = ", ".join(f"`{label}`" for label in each.labels)
        vllm = ", ".join(f"`vllm:{name.name}{'_total' * (each.kind == 'counter')}`" for name in each.vllm)
        rows.append(f"| `{each.exposed_name}` | {each.kind} | {labels} | {each.text} | {vllm} |\n")
    return rows


if __name__ == "__main__":
    print(render(), end="")
