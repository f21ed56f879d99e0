"""The Helm chart: what it renders to, and which values it refuses."""

from __future__ import annotations

import json
import re
from typing import Any

import kubernetes_validate
import pytest

from shared.settings import Settings
from tests.support.helm_chart import (
    CHART,
    EVERYTHING,
    KEDA,
    ChartError,
    check_values,
    default_values,
    merged,
    objects,
    render,
)

CUSTOM = {"ScaledObject", "ServiceMonitor", "PodMonitor"}  # not Kubernetes' own
Objects = dict[tuple[str, str], dict[str, Any]]


def by_name(over: dict[str, Any]) -> Objects:
    return {(each["kind"], each["metadata"]["name"]): each for each in objects(over)}


@pytest.fixture(scope="module")
def everything() -> Objects:
    return by_name(EVERYTHING)


def pods(found: Objects) -> dict[str, dict[str, Any]]:
    return {name: each["spec"]["template"] for (kind, name), each in found.items() if kind == "Deployment"}


def environment(pod: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each.get("value", "secret") for each in pod["spec"]["containers"][0]["env"]}


@pytest.mark.parametrize("over", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_objects_fit_the_schemas_of_kubernetes(over: dict[str, Any]) -> None:
    found = [each for each in objects(over) if each["kind"] not in CUSTOM]
    assert found
    for each in found:
        kubernetes_validate.validate(each, "1.34", strict=True)


def test_names_are_unique(everything: Objects) -> None:
    assert len(everything) == len(objects(EVERYTHING))
    assert {name for kind, name in everything if kind == "Deployment"} == {
        f"prod-headrace-{name}" for name in ("api", "small", "large", "rare", "tables", "tasks")
    }


def test_every_variable_is_a_setting(everything: Objects) -> None:
    known = {f"HEADRACE_{name.upper()}" for name in Settings.model_fields}
    assert {name for pod in pods(everything).values() for name in environment(pod)} - known == {"KEDA_API_KEY"}


def test_settings_are_read_as_they_were_meant(everything: Objects) -> None:
    env = environment(pods(everything)["prod-headrace-large"])
    assert env["HEADRACE_GRACE"] == "60"
    assert env["HEADRACE_LOG_TOKENS"] == "1048576"
    assert env["HEADRACE_SERVED_MODEL_NAME"] == "large"
    assert env["HEADRACE_REDIS_URL"] == "secret"
    values = {name.removeprefix("HEADRACE_").lower(): value for name, value in env.items() if value != "secret"}
    plans = {"plans": {"free": {"requests": "60/minute"}}}
    assert env["HEADRACE_PLANS"] == '{"free":{"requests":"60/minute"}}'
    assert Settings(**(values | plans)).metrics_port == 9401


def test_processes_get_the_secrets_that_they_use(everything: Objects) -> None:
    for name, pod in pods(everything).items():
        secrets = {key for key, value in environment(pod).items() if value == "secret"} - {"KEDA_API_KEY"}
        accounts = {"HEADRACE_DATABASE_URL", "HEADRACE_KEY_PEPPER"} if name.endswith(("-api", "-tasks")) else set()
        assert secrets == {"HEADRACE_REDIS_URL"} | accounts


def test_pods_are_confined(everything: Objects) -> None:
    for pod in pods(everything).values():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False  # else Kubernetes defines HEADRACE_…, which no setting has
        assert spec["securityContext"]["runAsNonRoot"] is True
        context = spec["containers"][0]["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        mounted = {each["mountPath"] for each in spec["containers"][0]["volumeMounts"]}
        assert {"/tmp", "/data", "/cache"} <= mounted
        assert {each["name"] for each in spec["containers"][0]["volumeMounts"]} == {
            each["name"] for each in spec["volumes"]
        }


def test_pods_may_drain_before_they_are_killed(everything: Objects) -> None:
    waits = {name: pod["spec"]["terminationGracePeriodSeconds"] for name, pod in pods(everything).items()}
    assert waits["prod-headrace-api"] == 13 + 5 + 10  # grace, rounded up; preStop; margin
    assert waits["prod-headrace-large"] == 60 + 10


def test_gpus_are_limits_beside_the_others(everything: Objects) -> None:
    container = pods(everything)["prod-headrace-large"]["spec"]["containers"][0]
    assert container["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": 2}


def test_scaled_deployments_leave_replicas_to_the_scaler(everything: Objects) -> None:
    assert everything["Deployment", "prod-headrace-small"]["spec"]["replicas"] == 2
    for name in ("large", "rare"):
        assert "replicas" not in everything["Deployment", f"prod-headrace-{name}"]["spec"]
    scaled = everything["ScaledObject", "prod-headrace-rare"]["spec"]
    assert scaled["minReplicaCount"] == 0
    assert scaled["triggers"][0] == {
        "type": "external-push",
        "metadata": {
            "scalerAddress": "prod-headrace-api.llm.svc:9000",
            "model": "rare",
            "tokensPerReplica": "2000000",
            "apiKeyFromEnv": "KEDA_API_KEY",
        },
    }
    metrics = everything["HorizontalPodAutoscaler", "prod-headrace-large"]["spec"]["metrics"]
    assert [next(iter(each.keys() - {"type"})) for each in metrics] == ["pods", "external"]


@pytest.mark.parametrize(("worker", "path"), [({}, "/ready"), (KEDA, "/live")], ids=["always", "from zero"])
def test_the_api_is_ready_if_requests_can_wake_a_model(worker: dict[str, Any], path: str) -> None:
    found = by_name({"workers": [{"name": "one", "model": "one", "replicas": 1, **worker}]})
    probe = pods(found)["prod-headrace-api"]["spec"]["containers"][0]["readinessProbe"]
    assert probe["httpGet"]["path"] == path


def test_selectors_of_deployments_are_disjoint(everything: Objects) -> None:
    labels = {name: pod["metadata"]["labels"].items() for name, pod in pods(everything).items()}
    for (kind, name), each in everything.items():
        if kind in {"Deployment", "PodDisruptionBudget"}:
            wanted = each["spec"]["selector"]["matchLabels"].items()
            assert [other for other in labels if wanted <= labels[other]] == [name]


def test_the_admin_port_stays_in_the_cluster(everything: Objects) -> None:
    found = by_name(merged(EVERYTHING, {"api": {"service": {"type": "LoadBalancer"}}}))
    public = found["Service", "prod-headrace-api"]["spec"]
    assert public["type"] == "LoadBalancer"
    assert {each["name"] for each in public["ports"]} == {"http", "grpc"}
    assert found["Service", "prod-headrace-admin"]["spec"]["type"] == "ClusterIP"
    rules = everything["NetworkPolicy", "prod-headrace-api"]["spec"]["ingress"]
    assert all(rule.get("from") for rule in rules if {"port": "admin"} in rule["ports"])


def test_probes_and_ports_agree(everything: Objects) -> None:
    for pod in pods(everything).values():
        container = pod["spec"]["containers"][0]
        names = {each["name"] for each in container.get("ports", ())}
        probes = [value for name, value in container.items() if name.endswith("Probe")]
        assert {probe["httpGet"]["port"] for probe in probes if "httpGet" in probe} <= names


def test_notes_say_how_to_begin() -> None:
    assert "headrace keys create" in render()["NOTES.txt"]
    assert "AUTHENTICATION IS OFF" in render({"settings": {"auth": False, "insecure": True}})["NOTES.txt"]


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"replicas": 3}, "replicas"),
        ({"api": {"replicas": 0}}, r"\$\.api\.replicas"),
        ({"api": {"service": {"type": "ExternalName"}}}, "ExternalName"),
        ({"workers": [{"name": "Big_Model", "replicas": 1}]}, r"\$\.workers\[0\]\.name"),
        ({"workers": [{"name": "api", "replicas": 1}]}, r"\$\.workers\[0\]\.name"),
        ({"workers": [{"name": "a", "replicas": 1, "gpu": 1}]}, "gpu"),
        ({"settings": {"redis_url": "redis://:secret@host"}}, "redis_url"),
        ({"settings": {"port": 80}}, "port"),
        ({"secrets": {"redis_url": None}}, "redis_url"),
        ({"secrets": {"model": {"name": "a", "key": "b"}}}, "model"),
        ({"files": {"size": "many"}}, "many"),
    ],
)
def test_wrong_values_are_refused(over: dict[str, Any], message: str) -> None:
    with pytest.raises(ChartError, match=message):
        check_values(merged(default_values(), over))


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"secrets": {"database_url": None}}, "settings.auth needs secrets.database_url"),
        ({"secrets": {"key_pepper": None}}, "needs secrets.key_pepper"),
        ({"settings": {"auth": False}}, "settings.auth is false"),
        ({"tasks": {"enabled": True}}, "tasks.enabled needs a volume"),
        ({"monitoring": {"enabled": True}}, "needs monitoring.adminKey.name"),
        ({"workers": [{"name": "a", "replicas": 1}, {"name": "a", "replicas": 1}]}, "a occurs twice"),
        (
            {"workers": [{"name": "a", "replicas": 1, "autoscaling": {
                "hpa": {"enabled": True}, "keda": {"enabled": True}}}]},
            "both autoscaling.hpa and autoscaling.keda",
        ),
        (
            {"workers": [{"name": "a", "model": "/a", "replicas": 1, "autoscaling": {"hpa": {"enabled": True}}}]},
            "autoscaling of a needs servedModelName",
        ),
        (
            {"workers": [{"name": "a", "model": "a", "replicas": 1, "autoscaling": {"keda": {"enabled": True}}}]},
            "autoscaling.keda of a needs adminKey.name",
        ),
    ],
)  # fmt: skip
def test_contradictions_are_refused(over: dict[str, Any], message: str) -> None:
    with pytest.raises(ChartError, match=message):
        render(over)


def test_secret_settings_are_those_of_the_code() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    secrets = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    assert set(schema["properties"]["secrets"]["propertyNames"]["enum"]) == secrets


def test_the_readme_names_every_value() -> None:
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    named = {name.partition(".")[0] for name in re.findall(r"`([\w.]+)", readme)}
    assert set(default_values()) - named == set()
