"""The manifests of autoscalers: chart, samples, adapter rules and scaler agree."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
import yaml

from producer_api.rpc.external_scaler import KEY_NAMES
from producer_api.rpc.scaler_metadata import TARGETS, ScalerMetadata
from tests.support.helm_chart import EVERYTHING, RELEASE, ROOT, objects

SAMPLES = ROOT / "deploy" / "kubernetes"
OTHER_FIELDS = {"scalerAddress", "model", "class", "activationThreshold"}
KEY = {"adminKey": {"name": "admin"}}
ALL_FIELDS = {"requestsPerReplica": 2.5, "tokensPerReplica": 2_000_000, "targetWait": 10, "activationThreshold": 0}

Objects = dict[str, dict[str, Any]]


def sample(name: str, worker: str = "smollm2") -> dict[str, Any]:
    """Return a sample as the chart would render it for a worker of this name."""
    text = (SAMPLES / name).read_text(encoding="utf-8")
    text = text.replace("headrace-smollm2", f"headrace-{worker}").replace(".default.", f".{RELEASE['Namespace']}.")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def rendered(workers: dict[str, dict[str, Any]], **values: Any) -> Objects:
    """Return the chart's objects by kind and name."""
    entries = [{"name": name, "model": name, "replicas": 1, **fields} for name, fields in workers.items()]
    found = objects({"fullnameOverride": "headrace", **values, "workers": entries})
    return {f"{each['kind']} {each['metadata']['name']}": each for each in found}


def by_keda(**fields: Any) -> dict[str, Any]:
    return {"autoscaling": {"keda": {"enabled": True, **fields}}}


@pytest.fixture(scope="module")
def scaled() -> Objects:
    hpa = {"gpus": 1, "servedModelName": "smollm2", "autoscaling": {"hpa": {"enabled": True}}}
    zero = {"servedModelName": "smollm2", **by_keda(requestsPerReplica=32, **KEY)}
    workers = {"by-hpa": hpa, "zero": zero, "targets": by_keda(**ALL_FIELDS, **KEY)}
    return rendered({**workers, "always": by_keda(minReplicas=1, **KEY)})


def environment(deployment: dict[str, Any]) -> dict[str, Any]:
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


def test_the_sample_of_an_hpa_is_that_of_the_chart(scaled: Objects) -> None:
    hpa = sample("hpa.yaml", "by-hpa")
    assert scaled["HorizontalPodAutoscaler headrace-by-hpa"]["spec"] == hpa["spec"]
    assert (hpa["spec"]["minReplicas"], hpa["spec"]["maxReplicas"]) == (2, 10)
    kubernetes_validate.validate(hpa, "1.34", strict=True)


def test_the_sample_for_keda_is_that_of_the_chart(scaled: Objects) -> None:
    assert scaled["ScaledObject headrace-zero"]["spec"] == sample("keda.yaml", "zero")["spec"]


def test_triggers_have_fields_of_the_scaler(scaled: Objects) -> None:
    [trigger] = scaled["ScaledObject headrace-targets"]["spec"]["triggers"]
    metadata = trigger["metadata"]
    assert set(metadata) - OTHER_FIELDS - set(TARGETS) == {KEY_NAMES[0]}
    parsed = ScalerMetadata.parse(metadata)
    assert (parsed.model, parsed.activation) == ("targets", 0.0)
    assert list(parsed.targets.values()) == [2.5, 2_000_000.0, 10.0]


def test_the_adapter_makes_the_metrics_of_the_hpa() -> None:
    rules = yaml.safe_load((SAMPLES / "prometheus-adapter.yaml").read_text(encoding="utf-8"))["rules"]
    made = {(kind, rule["name"]["as"]) for kind in ("custom", "external") for rule in rules[kind]}
    read = set()
    for metric in sample("hpa.yaml")["spec"]["metrics"]:
        kind, field = ("custom", "pods") if metric["type"] == "Pods" else ("external", "external")
        read.add((kind, metric[field]["metric"]["name"]))
    assert made == read
    [by_pod] = rules["custom"]
    assert by_pod["resources"]["overrides"] == {name: {"resource": name} for name in ("namespace", "pod")}


def test_the_api_takes_requests_for_models_at_zero(scaled: Objects) -> None:
    api = environment(scaled["Deployment headrace-api"])
    assert api["HEADRACE_SCALABLE_MODELS"] == "smollm2,targets"


def test_keda_finds_its_key_in_the_pods_that_it_scales(scaled: Objects) -> None:
    variable = environment(scaled["Deployment headrace-zero"])["KEDA_API_KEY"]
    assert variable == {"secretKeyRef": {"name": "admin", "key": "admin_key"}}
    assert "KEDA_API_KEY" not in environment(scaled["Deployment headrace-by-hpa"])


def test_settings_of_the_user_win() -> None:
    """Given a scaler without authentication and models named by hand, neither is changed."""
    found = rendered({"one": by_keda()}, settings={"scaler_auth": False, "scalable_models": "a,b"})
    assert environment(found["Deployment headrace-api"])["HEADRACE_SCALABLE_MODELS"] == "a,b"
    assert "KEDA_API_KEY" not in environment(found["Deployment headrace-one"])


def test_monitors_name_the_jobs_of_the_rules() -> None:
    """Given the monitors of the operator, jobs are called as in prometheus.yml, and ports are those of the pods."""
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    own = {job["job_name"] for job in config["scrape_configs"] if job["job_name"].startswith("headrace-")}
    found = objects(EVERYTHING)
    monitors = [each["spec"] for each in found if each["kind"] in {"ServiceMonitor", "PodMonitor"}]
    endpoints = [each for spec in monitors for each in spec.get("endpoints", spec.get("podMetricsEndpoints"))]
    assert {endpoint["relabelings"][0]["replacement"] for endpoint in endpoints} == own
    [tasks] = [
        each for each in found if each["kind"] == "Deployment" and each["metadata"]["name"].endswith("-tasks")
    ]
    [port] = tasks["spec"]["template"]["spec"]["containers"][0]["ports"]
    assert environment(tasks)["HEADRACE_TASKS_METRICS_PORT"] == str(port["containerPort"]) == "9402"


@pytest.mark.slow
def test_custom_resources_fit_the_types_of_their_projects() -> None:
    """Given the types of KEDA and the Prometheus operator, resources keep every field when they are parsed."""
    import cloudcoil.models.keda.v1alpha1 as keda
    import cloudcoil.models.prometheus_operator.v1 as operator

    types = {"ScaledObject": keda, "ServiceMonitor": operator, "PodMonitor": operator}
    found = [each for each in [*objects(EVERYTHING), sample("keda.yaml")] if each["kind"] in types]
    assert {each["kind"] for each in found} == set(types)
    for each in found:
        parsed = getattr(types[each["kind"]], each["kind"]).model_validate(each)
        assert parsed.model_dump(mode="json", by_alias=True, exclude_unset=True) == each
