"""Runs schemathesis over the OpenAPI document of a real API process, with a worker on the scripted engine."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.cluster import running
from tests.support.fakes import MODEL
from tests.support.waiting import LIMIT_S

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
HIGH = {  # no bound on how many, so that a refusal is the case's own fault; answers are short
    "max_model_len": 64,
    "queue_depth": 100_000,
    "tenant_queue_depth": 100_000,
    "max_batches": 100_000,
}


COVERAGE = 2_500  # cases of the coverage phase
EACH = 28  # operations that take as many examples as they are given
COUNT = re.compile(r"([0-9]+) generated")


@dataclass(frozen=True)
class Found:
    """What became of a run: how many cases were sent, and what schemathesis says of them."""

    cases: int
    passed: bool
    text: str


async def fuzz(folder: Path, *, cases: int, seed: int, coverage: bool = True) -> Found:
    """Send at least `cases` requests, the same for the same seed; `coverage`: with each bound of each field."""
    async with running(folder, apis=1, workers=1, **HIGH, data_dir=folder, files_dir=folder / "files") as cluster:
        [url] = cluster.urls
        return await _run(folder, url, cases, seed, coverage)


async def _run(folder: Path, url: str, cases: int, seed: int, coverage: bool) -> Found:
    report = folder / "report.ndjson"
    options = [
        *("--checks", ",".join(CHECKS)),
        *("--phases", "examples,coverage,fuzzing" if coverage else "examples,fuzzing"),
        *("--max-examples", str(max(1, (cases - COVERAGE * coverage) // EACH)), "--seed", str(seed)),
        *("--generation-database", "none", "--no-shrink", "--suppress-health-check", "all"),
        *("--request-timeout", "30", "--max-failures", "20", "--warnings", "off", "--no-color"),
        *("--report", "ndjson", "--report-ndjson-path", str(report)),
    ]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", *options),
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks",
            "HEADRACE_FUZZ": json.dumps(await _made(url)),
        },
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told, _ = await process.communicate()
    text = told.decode()
    counted = COUNT.search(text)
    return Found(int(counted[1]) if counted else 0, process.returncode == 0, text)


async def _made(url: str) -> dict[str, list[str]]:
    """Something of each kind that has an id."""
    async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as http:
        body = {"model": MODEL, "prompt": "x", "max_tokens": 4}
        jobs = [(await http.post("/v1/jobs", json=body)).json()["id"] for _ in range(3)]
        line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
        upload = {"file": ("in.jsonl", json.dumps(line).encode())}
        file = (await http.post("/v1/files", files=upload, data={"purpose": "batch"})).json()["id"]
        asked = {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"}
        batch = (await http.post("/v1/batches", json=asked)).json()["id"]
        response = (await http.post("/v1/responses", json={"model": MODEL, "input": "x"})).json()["id"]
    return {
        "model": [MODEL],
        "name": [MODEL],
        "job_id": jobs,
        "file_id": [file],
        "input_file_id": [file],
        "batch_id": [batch],
        "response_id": [response],
        "previous_response_id": [response],
    }
