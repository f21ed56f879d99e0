"""A host loads, updates and unloads the models of a repository, and runs orders."""

from __future__ import annotations

import asyncio
import json
import sys
import threading

import pytest

from shared.errors import ModelNotFound, ModelUnavailable
from shared.repository.store import ModelOrder
from tests.support.fake_nvml import FakeNvml
from tests.support.fakes import answer
from tests.support.model_repository import HostHarness, output_of, write_config, write_model
from tests.support.waiting import LIMIT_S
from workers.health.notifier import NO_SUPERVISOR
from workers.metrics import WorkerMetrics
from workers.repository.host import RepositoryHost

ALL_VERSIONS = "version_policy { all {} }"
ENSEMBLE = """
platform: "ensemble"
input { name: "X" data_type: TYPE_FP32 dims: -1 }
output { name: "Y" data_type: TYPE_FP32 dims: -1 }
ensemble_scheduling {
  step {
    model_name: "double" model_version: -1
    input_map { key: "X" value: "X" } output_map { key: "Y" value: "Z" }
  }
  step {
    model_name: "triple" model_version: -1
    input_map { key: "X" value: "Z" } output_map { key: "Y" value: "Y" }
  }
}
"""


async def outcome(hosts: HostHarness, order: ModelOrder) -> str:
    """Place an order, and return the error that answers it."""
    await hosts.backend.repository.place(order)
    async with asyncio.timeout(LIMIT_S):
        while (result := await hosts.backend.repository.result(order.id)) is None:
            await asyncio.sleep(0.01)
    return result.error


def load(name: str, number: int = 1, **fields: object) -> ModelOrder:
    return ModelOrder(id=f"order-{name}-{number}", model=name, action="load", **fields)  # type: ignore[arg-type]


def unload(name: str, number: int = 2) -> ModelOrder:
    return ModelOrder(id=f"order-{name}-{number}", model=name, action="unload")


async def test_a_process_opens_the_library_of_gpus_once(
    hosts: HostHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = FakeNvml(gpus=1)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    metrics = WorkerMetrics()
    RepositoryHost(
        hosts.settings.model_copy(update={"triton_metrics": True}), hosts.backend, metrics, NO_SUPERVISOR
    )
    shown = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    assert {"headrace_gpu_utilization_ratio", "nv_gpu_utilization"} <= shown
    assert nvml.called.count("nvmlInit") == 1


async def test_all_models_are_loaded_at_the_start(hosts: HostHarness) -> None:
    """Given two models and a broken one, the two are served, and the third says why it is not."""
    write_model(hosts.root, "double", 2)
    write_model(hosts.root, "triple", 3)
    write_model(hosts.root, "broken")
    write_config(hosts.root, "broken", "max_batch_sice: 1")
    async with hosts.host():
        assert await hosts.ask("double", 5) == 10
        assert await hosts.ask("triple", 5) == 15
        async with asyncio.timeout(LIMIT_S):
            while (broken := await hosts.status("broken")) is None:
                await asyncio.sleep(0.01)
        assert "max_batch_sice" in broken.reason
        with pytest.raises(ModelUnavailable, match="max_batch_sice"):
            await hosts.ask("broken")
    assert await hosts.backend.repository.statuses() == []
    assert await hosts.backend.registry.workers() == []


async def test_a_request_names_a_version_or_gets_the_newest(hosts: HostHarness) -> None:
    for version in (1, 2, 10):
        write_model(hosts.root, "m", version)
    write_config(hosts.root, "m", ALL_VERSIONS)
    waiting = await hosts.send("m")
    async with hosts.host():
        assert output_of(await answer(hosts.backend, waiting.id)) == 10
        status = await hosts.until("m", v1="READY", v2="READY", v10="READY")
        assert hosts.module.loaded == [("m", "10"), ("m", "2"), ("m", "1")]
        assert [version.version for version in status.ready] == ["1", "2", "10"]
        assert [await hosts.ask("m", version=version) for version in ("1", "2", "")] == [1, 2, 10]


async def test_a_polled_repository_is_followed(hosts: HostHarness) -> None:
    """New versions and models are loaded, changed files are loaded again, and what was removed leaves."""
    write_model(hosts.root, "m", 1)
    async with hosts.host(model_control="poll"):
        assert await hosts.ask("m") == 1
        write_model(hosts.root, "m", 2)
        await hosts.until("m", v2="READY")
        assert await hosts.ask("m") == 2
        write_model(hosts.root, "m", 2, factor=20)
        async with asyncio.timeout(LIMIT_S):
            while await hosts.ask("m") != 20:
                pass
        write_model(hosts.root, "other", 3)
        await hosts.until("other", v3="READY")
        hosts.root.joinpath("m").rename(hosts.root.parent / "m")
        async with asyncio.timeout(LIMIT_S):
            while await hosts.status("m") is not None:
                await asyncio.sleep(0.01)
        assert await hosts.ask("other") == 3


async def test_only_ordered_models_are_loaded_if_control_is_explicit(hosts: HostHarness) -> None:
    write_model(hosts.root, "m")
    async with hosts.host(model_control="explicit"):
        status = await hosts.until("m", v1="UNAVAILABLE")
        assert status.versions[0].reason == "unloaded"
        with pytest.raises(ModelNotFound, match="is not loaded"):
            await hosts.ask("m")
        assert await outcome(hosts, load("m")) == ""
        assert await hosts.ask("m") == 1
        assert await outcome(hosts, unload("m")) == ""
        with pytest.raises(ModelNotFound, match="is not loaded"):
            await hosts.ask("m")


async def test_orders_outlive_the_host(hosts: HostHarness) -> None:
    write_model(hosts.root, "m")
    write_model(hosts.root, "n")
    async with hosts.host(model_control="explicit"):
        assert await outcome(hosts, load("m")) == ""
    async with hosts.host(model_control="explicit"):
        assert await hosts.ask("m") == 1
        await hosts.until("n", v1="UNAVAILABLE")


async def test_an_order_brings_a_description_and_files(hosts: HostHarness) -> None:
    write_model(hosts.root, "m", 1)
    files = {"7/model.onnx": json.dumps({"factor": 70, "memory": 1}).encode()}
    async with hosts.host(model_control="explicit"):
        config = json.dumps({"backend": "onnxruntime", "max_batch_size": 4})
        assert await outcome(hosts, load("m", 1, config=config)) == ""
        status = await hosts.until("m", v1="READY")
        assert status.spec.max_batch_size == 4
        assert await outcome(hosts, load("m", 2, config='{"backend": "onnxruntime"}', files=files)) == ""
        await hosts.until("m", v7="READY")
        assert await hosts.ask("m") == 70
        assert await outcome(hosts, load("m", 3)) == ""
        assert await hosts.ask("m") == 1


async def test_an_order_that_fails_is_answered_with_the_reason(hosts: HostHarness) -> None:
    write_model(hosts.root, "m", error="the graph has a cycle")
    async with hosts.host(model_control="explicit"):
        assert await outcome(hosts, load("m")) == "the graph has a cycle"
        assert "no model nowhere" in await outcome(hosts, load("nowhere"))
        assert await hosts.status("nowhere") is None
        write_model(hosts.root, "m")
        assert await outcome(hosts, load("m", 2)) == ""
        assert await hosts.ask("m") == 1


@pytest.mark.parametrize("control", ["none", "poll"])
async def test_orders_are_refused_unless_control_is_explicit(hosts: HostHarness, control: str) -> None:
    write_model(hosts.root, "m")
    async with hosts.host(model_control=control):
        assert "model_control must be explicit" in await outcome(hosts, unload("m"))
        assert await hosts.ask("m") == 1


async def test_a_model_that_cannot_be_loaded_fails_its_requests_alone(hosts: HostHarness) -> None:
    """A failed model is tried again after a pause; a request that waits for it meanwhile ends with the reason."""
    write_model(hosts.root, "good", 2)
    write_model(hosts.root, "bad", error="the graph has a cycle")
    waiting = await hosts.send("bad")
    async with hosts.host():
        assert await hosts.ask("good") == 2
        with pytest.raises(ModelUnavailable, match="bad cannot be loaded: the graph has a cycle"):
            await hosts.ask("bad")
        record = await hosts.backend.token_log.record(waiting.id)
        assert record is not None
        assert record.finish == "model_unavailable"
        write_model(hosts.root, "bad", 1)
        await hosts.until("bad", v1="READY")
        assert await hosts.ask("bad") == 1


async def test_a_version_that_cannot_be_loaded_leaves_the_old_one(hosts: HostHarness) -> None:
    write_model(hosts.root, "m", 1)
    async with hosts.host(model_control="poll"):
        assert await hosts.ask("m") == 1
        write_model(hosts.root, "m", 2, error="the graph has a cycle")
        async with asyncio.timeout(LIMIT_S):  # it is reported as unloaded before its load has begun
            while (status := await hosts.until("m", v1="READY", v2="UNAVAILABLE")).versions[1].reason == "unloaded":
                await asyncio.sleep(0.01)
        assert status.versions[1].reason == "the graph has a cycle"
        assert await hosts.ask("m") == 1


async def test_changed_files_of_a_version_replace_it_once_they_are_loaded(hosts: HostHarness) -> None:
    write_model(hosts.root, "m")
    async with hosts.host(model_control="explicit") as host:
        assert await outcome(hosts, load("m")) == ""
        gate = hosts.module.load_gates["m"] = threading.Event()
        write_model(hosts.root, "m", error="the graph has a cycle")
        order = asyncio.create_task(outcome(hosts, load("m", 2)))
        async with asyncio.timeout(LIMIT_S):
            while len(hosts.module.loaded) < 2:
                await asyncio.sleep(0.01)
        assert host._models["m"].status().versions[0].state == "READY"
        assert await hosts.ask("m") == 1
        gate.set()
        assert await order == "the graph has a cycle"
        [version] = host._models["m"].status().versions
        assert (version.state, version.reason) == ("READY", "the graph has a cycle")
        assert await hosts.ask("m") == 1
        write_model(hosts.root, "m", factor=5)
        assert await outcome(hosts, load("m", 3)) == ""
        assert await hosts.ask("m") == 5


async def test_a_load_error_does_not_tell_where_the_repository_lies(hosts: HostHarness) -> None:
    folder = write_model(hosts.root, "m")
    write_model(hosts.root, "m", error=f"{folder}/weights.bin is damaged")
    async with hosts.host():
        status = await hosts.until("m", v1="UNAVAILABLE")
        assert status.versions[0].reason == "m/1/weights.bin is damaged"
        with pytest.raises(ModelUnavailable, match=r"m cannot be loaded: m/1/weights\.bin is damaged"):
            await hosts.ask("m")


async def test_a_model_sleeps_and_is_woken(hosts: HostHarness) -> None:
    write_model(hosts.root, "m")
    async with hosts.host():
        assert await hosts.ask("m") == 1
        await hosts.backend.registry.set_asleep("m", asleep=True)
        await hosts.until("m", v1="UNAVAILABLE")
        request = await hosts.send("m")
        await hosts.backend.registry.set_asleep("m", asleep=False)
        assert output_of(await answer(hosts.backend, request.id)) == 1


async def test_a_loading_model_is_reported(hosts: HostHarness) -> None:
    gate = hosts.module.load_gates["m"] = threading.Event()
    write_model(hosts.root, "m")
    async with hosts.host():
        request = await hosts.send("m", 5)
        status = await hosts.until("m", v1="LOADING")
        assert status.ready == ()
        gate.set()
        await hosts.until("m", v1="READY")
        assert output_of(await answer(hosts.backend, request.id)) == 5


async def test_an_ensemble_has_its_models_loaded(hosts: HostHarness) -> None:
    """Given an order for the ensemble alone, its models are loaded before it, and are unloaded with it."""
    write_model(hosts.root, "double", 1, factor=2)
    write_model(hosts.root, "triple", 1, factor=3)
    write_config(hosts.root, "both", ENSEMBLE)
    async with hosts.host(model_control="explicit"):
        assert await outcome(hosts, load("both")) == ""
        assert await hosts.ask("both", 5) == 30
        await hosts.until("triple", v1="READY")
        order = ModelOrder(id="order-3", model="both", action="unload", unload_dependents=True)
        assert await outcome(hosts, order) == ""
        for name in ("both", "double", "triple"):
            await hosts.until(name, v1="UNAVAILABLE")


async def test_an_ensemble_without_its_models_says_so(hosts: HostHarness) -> None:
    write_model(hosts.root, "double", 1, factor=2)
    write_config(hosts.root, "both", ENSEMBLE)
    async with hosts.host(model_control="explicit"):
        assert await outcome(hosts, load("both")) == "its model triple is not loaded"
