"""`scripts/test-observability`: a real Prometheus reads a running Headrace, for the shipped rules and dashboards.

It needs prometheus, promtool and prometheus-redis-exporter (Debian's names) in PATH. Two installations run: one of
SmolLM2, and one of the scripted engine, whose requests can kill their workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from headrace.client import HeadraceClient
from headrace.launcher.up import claim_port
from tests.deploy.prometheus_server import Prometheus
from tests.support.batch_client import ENDED, BatchClient, line, until
from tests.support.launched_server import Launched
from tests.support.observability import RULE_TESTS, RULES, Expression, expressions
from tests.support.waiting import LIMIT_S

TOOLS = ("prometheus", "promtool", "prometheus-redis-exporter")
# Metrics that a healthy machine of this kind does not have. An expression that reads one of them may be empty.
ABSENT = {
    "headrace_gpu_utilization_ratio": "no GPU",
    "headrace_gpu_memory_used_bytes": "no GPU",
    "headrace_gpu_memory_bytes": "no GPU",
    "headrace_kafka_lag": "no Kafka",
    "headrace_kafka_results_total": "no Kafka",
    "headrace_kafka_errors_total": "no Kafka",
    "headrace_kafka_dead_letters_total": "no Kafka",
    "headrace_foreign_entries_total": "no other program writes into the keys",
    "headrace_redis_errors_total": "Redis answers",
    "headrace_api_limited_total": "no limits are set",
    "headrace_routed_requests_total": "no routing policy is set",
    "headrace_worker_leases_lost_total": "no lease is lost",
    "headrace_worker_fenced_writes_total": "no lease is lost",
}
# Selectors that only the state has which their alert reports; the metric itself is there with other labels.
ABSENT_SELECTORS = {
    'headrace_api_requests_total{outcome=~"failed|unavailable"}': "no request fails",
    'headrace_api_refusals_total{reason="queue_full"}': "no queue is full",
    'headrace_worker_canaries_total{outcome="failed"}': "no worker computes wrongly",
    'headrace_tasks_batches_total{outcome="failed"}': "no batch fails",
}
CHATS = 6


def free_port() -> int:
    with claim_port("127.0.0.1", 0) as reserved:
        port: int = reserved.getsockname()[1]
        return port


class Installation:
    """`headrace up` with metrics of all its processes."""

    def __init__(self, folder: Path, model: str) -> None:
        self.admin, self.worker, self.tasks = free_port(), free_port(), free_port()
        self.model = model
        self.up = Launched(
            folder,
            "--model",
            model,
            admin_port=self.admin,
            metrics_port=self.worker,
            tasks_metrics_port=self.tasks,
            canary_interval=5,
        )
        self.up.await_line("^ready: ")

    def redis_exporter(self, port: int) -> subprocess.Popen[bytes]:
        """Start an exporter of the embedded server, whose URL the API has."""
        url = urlsplit(self.up.child("api").environ()["HEADRACE_REDIS_URL"])
        address = f"unix://{url.path}" if url.scheme == "unix" else f"redis://{url.hostname}:{url.port}"
        command = ["prometheus-redis-exporter", f"-redis.addr={address}", f"-web.listen-address=127.0.0.1:{port}"]
        environment = {**os.environ, "REDIS_PASSWORD": unquote(url.password or "")}
        return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)


def chat(url: str, model: str, **fields: object) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "Name a river."}], "max_tokens": 16, **fields}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=LIMIT_S)


def use_ordinarily(one: Installation) -> None:
    """Send chats, a cancelled one, refused ones, a repeated one, and a batch."""
    url = one.up.url
    for number in range(CHATS):
        assert chat(url, one.model, priority=("interactive", "standard", "batch")[number % 3]).status_code == 200
    assert chat(url, "no-such-model").status_code == 404
    assert chat(url, one.model, max_tokens=-5).status_code == 400
    with HeadraceClient(url) as client:
        job = client.submit({"model": one.model, "prompt": "Once", "max_tokens": 400, "ignore_eos": True})["id"]
        next(iter(client.events(job)))
        client.cancel(job)
    for _ in range(2):
        body = {"model": one.model, "prompt": "Once", "max_tokens": 2}
        answer = httpx.post(f"{url}/v1/completions", json=body, headers={"Idempotency-Key": "k"}, timeout=LIMIT_S)
        assert answer.status_code == 200
    batches = BatchClient(url)
    started = batches.start([line("1", model=one.model)])
    asyncio.run(until(batches, started.id, lambda batch: batch.status in ENDED))


def kill_workers(one: Installation) -> None:
    """Send a request that kills each worker that runs it, until it is set aside."""
    with HeadraceClient(one.up.url) as client:
        job = client.submit({"model": one.model, "prompt": "[die 2]", "max_tokens": 10})["id"]
        *_, end = client.events(job)
        assert end.name == "error"
    one.up.await_ready()
    assert chat(one.up.url, one.model).status_code == 200


def replace_worker(one: Installation) -> None:
    """Kill the worker of a running answer, which the next one takes over."""
    with HeadraceClient(one.up.url) as client:
        job = client.submit({"model": one.model, "prompt": "Once", "max_tokens": 300, "ignore_eos": True})["id"]
        events = client.events(job)
        next(events)
        one.up.child("worker").kill()
        *_, end = events
        assert end.name == "done"


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(LIMIT_S)


def is_absent(name: str, labels: str) -> bool:
    return name in ABSENT or any(
        selector.startswith(f"{name}{{") and selector.partition("{")[2][:-1] in labels
        for selector in ABSENT_SELECTORS
    )


def check(prometheus: Prometheus, expression: Expression) -> tuple[str, str]:
    """Return `data`, `empty` or `missing`, and the reason. Of an alert, only the selectors must have data."""
    selectors = expression.selectors()
    assert selectors, f"no metric found in {expression.text}"
    found = prometheus.query(expression.text)  # it parses
    if expression.kind != "alert" and found:
        return "data", ""
    missing = [(name, labels) for name, labels in sorted(selectors) if not prometheus.query(name + labels)]
    unexpected = [f"{name}{labels}" for name, labels in missing if not is_absent(name, labels)]
    if unexpected:
        return "missing", ", ".join(unexpected)
    if missing:
        return "empty", ", ".join(name + labels for name, labels in missing)
    return ("data", "") if expression.kind == "alert" else ("missing", "its metrics exist, the result is empty")


def check_all(prometheus: Prometheus) -> int:
    """Print a line for every expression without data, and a summary. Return the number of unexpected ones."""
    counts = {"data": 0, "empty": 0, "missing": 0}
    for expression in expressions():
        state, reason = check(prometheus, expression)
        counts[state] += 1
        if state != "data":
            print(f"{state:8}{expression.kind:8}{expression.place}: {reason}")
    unhealthy = [f"{rule['name']}: {rule['lastError']}" for rule in prometheus.rules() if rule["health"] == "err"]
    firing = sorted({found["metric"]["alertname"] for found in prometheus.query('ALERTS{alertstate="firing"}')})
    print(f"{counts['data']} expressions return data, {counts['empty']} are rightly empty here", end=", ")
    print(f"{counts['missing']} lack data; rules with errors: {unhealthy}; firing: {firing}")
    return counts["missing"] + len(unhealthy)


def promtool(*words: str) -> None:
    subprocess.run(["promtool", *words], check=True)


def main() -> int:
    if lacking := [tool for tool in TOOLS if shutil.which(tool) is None]:
        print(f"not in PATH: {', '.join(lacking)} (Debian: apt install prometheus prometheus-redis-exporter)")
        return 2
    promtool("check", "rules", *map(str, RULES))
    promtool("test", "rules", *map(str, RULE_TESTS))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        both = []
        for model in ("smollm2", "scripted"):
            both.append(Installation(folder / model, model))
            stack.callback(both[-1].up.stop)
        exporter = free_port()
        stack.callback(end, both[0].redis_exporter(exporter))
        port = free_port()
        targets = {
            "headrace-api": [f"127.0.0.1:{each.admin}" for each in both],
            "headrace-worker": [f"127.0.0.1:{each.worker}" for each in both],
            "headrace-tasks": [f"127.0.0.1:{each.tasks}" for each in both],
            "redis": [f"127.0.0.1:{exporter}"],
            "prometheus": [f"127.0.0.1:{port}"],
        }
        prometheus = Prometheus(folder, port, targets)
        stack.callback(prometheus.stop)
        promtool("check", "config", str(prometheus.config))
        prometheus.await_result("up")
        replace_worker(both[0])
        for _ in range(2):  # a rate needs two values of a series
            use_ordinarily(both[0])
        kill_workers(both[1])
        use_ordinarily(both[0])
        prometheus.await_result('max_over_time(headrace_worker_requests_total{model="scripted"}[10s] offset 3s)')
        return min(1, check_all(prometheus))


if __name__ == "__main__":
    sys.exit(main())
