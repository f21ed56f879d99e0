"""The Dockerfile, docker-compose.yml, systemd units and samples agree with the code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from shared.settings import Settings
from tests.support.helm_chart import objects
from workers.health.watchdog import INTERVAL_S

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
KNOWN = {f"HEADRACE_{name.upper()}" for name in Settings.model_fields}
KILL_MARGIN_S = 10  # between the end of `grace` and being killed
INTERPOLATED = re.compile(r"\$\{(\w+)")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(read("docker-compose.yml"))
    return loaded


SERVICES: dict[str, dict[str, Any]] = compose()["services"]
OWN = {name: each for name, each in SERVICES.items() if "build" in each}


def grace() -> float:
    return float(Settings.model_fields["grace"].default)


def test_compose_sets_known_settings() -> None:
    named = {name for each in OWN.values() for name in each["environment"]}
    assert {name for name in named if name.startswith("HEADRACE_")} - KNOWN == set()


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["cpus"]
    if name != "kafka":  # its image writes into its own folders, and has a user of its own
        assert service["read_only"] is True
        assert not str(service["user"]).startswith(("0", "root"))
    image, _, tag = service["image"].rpartition(":")
    assert image
    assert tag not in {"", "latest"}
    assert name in OWN or re.search(r"\d+\.\d+\.\d+", tag)


@pytest.mark.parametrize("name", SERVICES)
def test_services_have_a_health_check(name: str) -> None:
    assert name in OWN or SERVICES[name]["healthcheck"]["test"]


def test_prometheus_scrapes_what_compose_runs() -> None:
    """Given the targets of prometheus.yml, each is a name of a service that serves metrics on that port."""
    aliases = {
        name: {name, *each.get("networks", {}).get("default", {}).get("aliases", ())} for name, each in OWN.items()
    }
    jobs = yaml.safe_load(read("deploy/prometheus/prometheus.yml"))["scrape_configs"]
    targets = {
        name: found["port"] for job in jobs for found in job.get("dns_sd_configs", ()) for name in found["names"]
    }
    assert {name for name in aliases if not aliases[name] & set(targets)} == set()
    assert f"HEADRACE_METRICS_PORT={targets['worker']}" in read("Dockerfile")
    assert SERVICES["api"]["environment"]["HEADRACE_ADMIN_PORT"] == targets["api"]
    assert SERVICES["tasks"]["environment"]["HEADRACE_TASKS_METRICS_PORT"] == targets["tasks"]
    assert f"HEADRACE_HOST=0.0.0.0 HEADRACE_TASKS_METRICS_PORT={targets['tasks']}" in read("Dockerfile")


def test_compose_waits_until_processes_have_drained() -> None:
    assert {each["stop_grace_period"] for each in OWN.values()} == {f"{grace() + KILL_MARGIN_S:.0f}s"}


def test_own_services_are_targets_of_the_dockerfile() -> None:
    stages = re.findall(r"^FROM \S+ AS (\S+)$", read("Dockerfile"), re.MULTILINE)
    assert {each["build"]["target"] for each in OWN.values()} <= set(stages)


def test_every_variable_of_compose_is_in_the_example() -> None:
    example = set(re.findall(r"^# (\w+)=", read(".env.example"), re.MULTILINE)) - {"COMPOSE_PROFILES"}
    assert set(INTERPOLATED.findall(read("docker-compose.yml"))) == example


def test_the_api_image_has_no_torch() -> None:
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    wanted = re.search(r"AS api-packages$.*?\[([\w,]+)\]", read("Dockerfile"), re.DOTALL | re.MULTILINE)
    assert wanted
    names = [requirement for extra in wanted[1].split(",") for requirement in extras[extra]]
    assert not [name for name in [*names, *extras["api"]] if re.match(r"torch|transformers|headrace\[worker", name)]


def test_images_run_as_a_user_that_is_not_root() -> None:
    for stage in ("api", "tasks", "worker"):
        body = re.search(rf"^FROM base AS {stage}$(.*?)(?=^FROM|\Z)", read("Dockerfile"), re.DOTALL | re.MULTILINE)
        assert body
        assert "USER 10001:10001" in body[1]
        assert "HEALTHCHECK" in body[1]
    assert set(re.findall(r"\b(HEADRACE_[A-Z_]+)=", read("Dockerfile"))) <= KNOWN


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_fit_the_settings(unit: Path) -> None:
    lines = unit.read_text(encoding="utf-8").splitlines()
    pairs = [line.split("=", 1) for line in lines if "=" in line and not line.startswith("#")]
    entries = dict(pairs)
    assert int(entries["TimeoutStopSec"]) == grace() + KILL_MARGIN_S
    assert entries["ProtectSystem"] == "strict"
    assert entries["CapabilityBoundingSet"] == ""
    named = {name for key, value in pairs if key == "Environment" for name in re.findall(r"(HEADRACE_\w+)=", value)}
    assert named <= KNOWN
    command = entries["ExecStart"].rpartition(" ")[2]
    assert unit.stem.removeprefix("headrace-").rstrip("@") == command
    assert (entries["Type"] == "notify") == (command == "worker")


def test_the_worker_sends_signs_of_life_often_enough() -> None:
    wait = re.search(r"^WatchdogSec=(\d+)$", read("deploy/systemd/headrace-worker@.service"), re.MULTILINE)
    assert wait
    assert int(wait[1]) > 2 * max(INTERVAL_S, Settings.model_fields["step_timeout"].default / 2)


def test_the_pod_of_kserve_fits_the_schema() -> None:
    service = yaml.safe_load(read("deploy/kubernetes/kserve.yaml"))
    predictor = service["spec"]["predictor"]
    pod = {key: value for key, value in predictor.items() if key not in {"minReplicas", "maxReplicas"}}
    kubernetes_validate.validate(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}, "1.34", strict=True
    )
    assert {each["name"] for each in pod["containers"][0]["env"]} <= KNOWN


def test_routes_lead_to_the_services_of_the_chart() -> None:
    services = {
        each["metadata"]["name"].removeprefix("prod-"): {port["port"] for port in each["spec"]["ports"]}
        for each in objects()
        if each["kind"] == "Service"
    }
    found = list(yaml.safe_load_all(read("deploy/kubernetes/gateway.yaml")))
    backends = [
        backend
        for each in found
        if each["kind"].endswith("Route")
        for rule in each["spec"]["rules"]
        for backend in rule["backendRefs"]
    ]
    assert len(backends) == 2
    assert all(backend["port"] in services[backend["name"]] for backend in backends)
