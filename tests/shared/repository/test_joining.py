"""Statuses of several workers joined."""

from __future__ import annotations

from shared.repository.joining import join
from shared.repository.spec import ModelSpec
from shared.repository.status import BatchStatistics, Duration, ModelStatus, VersionStatistics, VersionStatus

LOADING = VersionStatus(version="2", state="LOADING", progress=0.5)


def status(*versions: VersionStatus, reason: str = "", backend: str = "onnxruntime") -> ModelStatus:
    return ModelStatus(name="iris", spec=ModelSpec(name="iris", backend=backend), versions=versions, reason=reason)


def test_a_version_is_in_its_best_state_on_any_worker() -> None:
    failed = VersionStatus(version="2", state="UNAVAILABLE", reason="no such file")
    earlier = VersionStatus(version="2", state="LOADING", progress=0.25)
    old = VersionStatus(version="10", state="READY")
    for found in (
        [status(failed), status(earlier), status(LOADING, old)],
        [status(old), status(LOADING), status(failed)],
    ):
        [joined] = join(found)
        assert joined.versions == (LOADING, old)


def test_the_description_is_that_of_a_worker_with_ready_versions() -> None:
    ready = status(VersionStatus(version="1", state="READY"), backend="sklearn")
    [joined] = join([status(reason="config.pbtxt:3: unknown field"), ready, status(LOADING)])
    assert (joined.spec.backend, joined.reason) == ("sklearn", "")


def test_statistics_are_summed() -> None:
    one = VersionStatistics(
        last_inference=5,
        inference_count=3,
        execution_count=2,
        success=Duration(3, 300),
        batches=(BatchStatistics(batch_size=1, compute_infer=Duration(1, 10)),),
        failures={"BACKEND": 1},
        memory_bytes=100,
    )
    other = VersionStatistics(
        last_inference=7,
        inference_count=4,
        success=Duration(1, 100),
        batches=(
            BatchStatistics(batch_size=2, compute_infer=Duration(1, 30)),
            BatchStatistics(batch_size=1, compute_infer=Duration(2, 30)),
        ),
        failures={"BACKEND": 2, "OTHER": 1},
        pending=1,
        memory_bytes=50,
    )
    found = [VersionStatus(version="1", state="READY", statistics=each) for each in (one, other)]
    [joined] = join([status(found[0]), status(found[1])])
    assert joined.versions[0].statistics == VersionStatistics(
        last_inference=7,
        inference_count=7,
        execution_count=2,
        success=Duration(4, 400),
        batches=(
            BatchStatistics(batch_size=1, compute_infer=Duration(3, 40)),
            BatchStatistics(batch_size=2, compute_infer=Duration(1, 30)),
        ),
        failures={"BACKEND": 3, "OTHER": 1},
        pending=1,
        memory_bytes=150,
    )
