"""A real Prometheus with the rules of `deploy/` for the script that tests them."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.support.observability import ROOT
from tests.support.waiting import LIMIT_S

CONFIG = ROOT / "deploy/prometheus/prometheus.yml"


def local_config(targets: dict[str, list[str]]) -> dict[str, Any]:
    """Return the shipped configuration with local targets by job, scraped every second."""
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(CONFIG.parent / pattern) for pattern in config["rule_files"]]
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert set(jobs) == set(targets), "jobs of prometheus.yml and of this test"
    for name, job in jobs.items():
        for key in ("authorization", "dns_sd_configs"):
            job.pop(key, None)
        job["static_configs"] = [{"targets": targets[name]}]
    return config


class Prometheus:
    """A server on a port, with its data in a folder."""

    def __init__(self, folder: Path, port: int, targets: dict[str, list[str]]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.config = folder / "prometheus.yml"
        self.config.write_text(yaml.safe_dump(local_config(targets)))
        command = ["prometheus", f"--config.file={self.config}", f"--storage.tsdb.path={folder / 'data'}"]
        with (folder / "prometheus.log").open("w") as log:
            self._process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stderr=log)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(LIMIT_S)

    def query(self, text: str) -> list[dict[str, Any]]:
        """Return the samples of an expression. Raises AssertionError if it does not parse."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": text}, timeout=LIMIT_S)
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:  # it starts
            return []
        found = answer.json()
        assert found["status"] == "success", found
        result: list[dict[str, Any]] = found["data"]["result"]
        return result

    def await_result(self, text: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            try:
                if self.query(text):
                    return
            except httpx.TransportError:
                assert self._process.poll() is None, "Prometheus has ended"
            time.sleep(0.5)
        raise AssertionError(f"Prometheus has no result of {text}")

    def rules(self) -> list[dict[str, Any]]:
        found = httpx.get(f"{self.url}/api/v1/rules", timeout=LIMIT_S).json()
        return [rule for group in found["data"]["groups"] for rule in group["rules"]]
