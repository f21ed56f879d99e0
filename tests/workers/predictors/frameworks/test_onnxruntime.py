"""ONNX graphs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from shared.errors import ConfigError, InvalidRequest
from shared.repository.spec import DynamicBatching, InstanceGroup, ModelSpec, TensorSpec
from tests.support.onnx_models import copied_texts, place, scaled_sum
from workers.predictors.interface import Execution
from workers.predictors.select import module_for

SPEC = ModelSpec(name="sum", backend="onnxruntime")
A = np.arange(8, dtype="f4").reshape(2, 4)
B = np.full((2, 4), 3, dtype="f4")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return place(scaled_sum(), tmp_path, "sum")


def test_outputs_equal_the_sessions(folder: Path) -> None:
    module = module_for(SPEC)
    predictor = module.load(module.complete(SPEC, folder), folder, threads=1)
    found = predictor.predict(Execution(inputs={"A": A, "B": B}))
    expected = onnxruntime.InferenceSession(folder / "model.onnx").run(["Y", "Z"], {"A": A, "B": B})
    assert list(found) == ["Y", "Z"]
    assert all(np.array_equal(found[name], each) for name, each in zip("YZ", expected, strict=True))
    assert list(predictor.predict(Execution(inputs={"A": A, "B": B}, outputs=("Z",)))) == ["Z"]
    assert predictor.memory_bytes >= (folder / "model.onnx").stat().st_size


def test_texts_are_bytes_on_both_sides(tmp_path: Path) -> None:
    folder = place(copied_texts(), tmp_path, "texts")
    spec = ModelSpec(name="texts", backend="onnxruntime")
    module = module_for(spec)
    completed = module.complete(spec, folder)
    assert (completed.max_batch_size, completed.inputs[0].datatype) == (
        0,
        "BYTES",
    )  # the shape has no batch dimension
    predictor = module.load(completed, folder, threads=1)
    texts = np.array([[b"a", "ö".encode()], [b"", b"\x00b"]], dtype=object)
    found = predictor.predict(Execution(inputs={"T": texts}))
    assert found["U"].tolist() == texts.tolist()
    assert found["S"].tolist() == [2, 2]
    with pytest.raises(InvalidRequest, match="input T must be UTF-8"):
        predictor.predict(Execution(inputs={"T": np.array([[b"\xff"]], dtype=object)}))


def test_description_is_completed_from_the_graph(folder: Path) -> None:
    completed = module_for(SPEC).complete(SPEC, folder)
    assert completed.max_batch_size == 4
    assert completed.dynamic_batching == DynamicBatching()
    assert completed.inputs == tuple(TensorSpec(name=name, datatype="FP32", dims=(4,)) for name in "AB")
    assert completed.outputs == tuple(TensorSpec(name=name, datatype="FP32", dims=(4,)) for name in "YZ")


def test_declared_tensors_are_kept(folder: Path) -> None:
    inputs = tuple(TensorSpec(name=name, datatype="FP32", dims=(2, 2), reshape=(4,)) for name in "AB")
    outputs = (TensorSpec(name="Z", datatype="FP32", dims=(4,)),)
    spec = ModelSpec(name="sum", backend="onnxruntime", max_batch_size=8, inputs=inputs, outputs=outputs)
    assert module_for(spec).complete(spec, folder) == spec


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((TensorSpec(name="C", datatype="FP32", dims=(-1, 4)),), "model sum has no input C; it has A, B"),
        ((TensorSpec(name="A", datatype="FP32", dims=(-1, 4)),), "model sum lacks its inputs B"),
        (
            (TensorSpec(name="A", datatype="INT64", dims=(-1, 4)),),
            "input A of model sum must have the data type FP32, got INT64",
        ),
        (
            (TensorSpec(name="A", datatype="FP32", dims=(-1, -1)),),
            r"input A of model sum must have the dimensions \[-1, 4\], got \[-1, -1\]",
        ),
    ],
)
def test_contradictions_are_refused(folder: Path, inputs: tuple[TensorSpec, ...], message: str) -> None:
    spec = ModelSpec(name="sum", backend="onnxruntime", inputs=inputs)
    with pytest.raises(ConfigError, match=message):
        module_for(spec).complete(spec, folder)


def test_batches_need_a_free_first_dimension(tmp_path: Path) -> None:
    folder = place(copied_texts(), tmp_path, "texts")
    spec = ModelSpec(name="texts", backend="onnxruntime", max_batch_size=8)
    with pytest.raises(ConfigError, match=r"max_batch_size of model texts must be 0: S has the shape \[2\]"):
        module_for(spec).complete(spec, folder)


def test_inputs_that_the_graph_refuses_are_the_requests_fault(folder: Path) -> None:
    predictor = module_for(SPEC).load(SPEC, folder, threads=1)
    with pytest.raises(InvalidRequest, match=r"the model refuses its inputs: .* invalid dimensions for input: A"):
        predictor.predict(Execution(inputs={"A": A[:, :3], "B": B}))


def test_damaged_file_is_named(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ConfigError, match=r"model sum: 1/model.onnx cannot be loaded: .*[Pp]rotobuf"):
        module_for(SPEC).complete(SPEC, folder)


def test_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    with pytest.raises(ConfigError, match=r"model sum: version 1 has no model\.onnx"):
        module_for(SPEC).load(SPEC, tmp_path / "1", threads=1)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"intra_op_thread_count": "many"}, "parameter intra_op_thread_count of model sum must be a number"),
        ({"execution_mode": "2"}, "parameter execution_mode of model sum must be 0 or 1"),
    ],
)
def test_invalid_parameters_are_refused(folder: Path, parameters: dict[str, str], message: str) -> None:
    spec = ModelSpec(name="sum", backend="onnxruntime", parameters=parameters)
    with pytest.raises(ConfigError, match=message):
        module_for(spec).load(spec, folder, threads=1)


def test_parameters_win_over_the_workers_threads(folder: Path) -> None:
    parameters = {"intra_op_thread_count": "2", "execution_mode": "1", "session.intra_op.allow_spinning": "0"}
    spec = ModelSpec(name="sum", backend="onnxruntime", parameters=parameters)
    options = module_for(spec).load(spec, folder, threads=1)._session.get_session_options()  # type: ignore[attr-defined]
    assert (options.intra_op_num_threads, options.execution_mode) == (2, onnxruntime.ExecutionMode.ORT_PARALLEL)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_gpu_instances_need_a_gpu(folder: Path) -> None:
    spec = ModelSpec(name="sum", backend="onnxruntime", instance_groups=(InstanceGroup(kind="KIND_GPU"),))
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        module_for(spec).load(spec, folder, threads=1)
        return
    with pytest.raises(ConfigError, match="model sum has instances of KIND_GPU"):
        module_for(spec).load(spec, folder, threads=1)


PROGRAM = """
import sys
from pathlib import Path
from shared.repository.spec import ModelSpec
from workers.predictors.select import module_for

spec = ModelSpec(name="sum", backend="onnxruntime")
module_for(spec).load(spec, Path(sys.argv[1]), threads=1)
frameworks = {"torch", "sklearn", "skops", "xgboost", "lightgbm", "tensorflow", "transformers", "scipy", "pandas"}
print(*sorted(frameworks & set(sys.modules)))
"""


def test_only_the_models_framework_is_imported(folder: Path) -> None:
    found = subprocess.run([sys.executable, "-c", PROGRAM, folder], capture_output=True, text=True, check=True)
    assert found.stdout == "\n"
