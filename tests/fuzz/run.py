"""Run schemathesis with the OpenAPI document of a real API process, with a worker on the scripted engine."""

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
    "no_fault_of_the_server",  # of tests.fuzz.hooks
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
SETTINGS = {  # no limit on the number of requests, so that each refusal is due to its own case; short answers
    "max_model_len": 64,
    "queue_depth": 100_000,
    "tenant_queue_depth": 100_000,
    "max_batches": 100_000,
}


COVERAGE_CASES = 2_500  # of the coverage phase
FUZZED_OPERATIONS = 34  # operations that use the full number of examples
COUNT = re.compile(r"([0-9]+) generated")


@dataclass(frozen=True)
class Found:
    """Result of a run: the number of cases, and the output of schemathesis."""

    cases: int
    passed: bool
    text: str


async def fuzz(folder: Path, *, cases: int, seed: int, coverage: bool = True) -> Found:
    """Send at least `cases` requests, the same for the same seed. `coverage` adds every bound of every field."""
    async with running(
        folder, apis=1, workers=1, **SETTINGS, data_dir=folder, files_dir=folder / "files"
    ) as cluster:
        [url] = cluster.urls
        return await _run(folder, url, cases, seed, coverage)


async def _run(folder: Path, url: str, cases: int, seed: int, coverage: bool) -> Found:
    options = [
        *("--checks", ",".join(CHECKS)),
        *("--phases", "examples,coverage,fuzzing" if coverage else "examples,fuzzing"),
        *(
            "--max-examples",
            str(max(1, (cases - COVERAGE_CASES * coverage) // FUZZED_OPERATIONS)),
            "--seed",
            str(seed),
        ),
        *("--generation-database", "none", "--no-shrink", "--suppress-health-check", "all"),
        *("--request-timeout", "30", "--max-failures", "20", "--warnings", "off", "--no-color"),
    ]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", *options),
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks",
            "HEADRACE_FUZZ": json.dumps(await _known_values(url)),
        },
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    text = output.decode()
    counted = COUNT.search(text)
    return Found(int(counted[1]) if counted else 0, process.returncode == 0, text)


async def _known_values(url: str) -> dict[str, list[str]]:
    """Create one object of each kind that has an id, and return known values by field name."""
    async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as http:
        body = {"model": MODEL, "prompt": "x", "max_tokens": 4}
        jobs = [(await http.post("/v1/jobs", json=body)).json()["id"] for _ in range(3)]
        line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
        upload = {"file": ("in.jsonl", json.dumps(line).encode())}
        file = (await http.post("/v1/files", files=upload, data={"purpose": "batch"})).json()["id"]
        request = {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"}
        batch = (await http.post("/v1/batches", json=request)).json()["id"]
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
