"""Programs of torch.export, and TorchScript."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.errors import ConfigError
from shared.repository.spec import InstanceGroup, ModelSpec, TensorSpec
from tests.support.torch_models import Named, affine, export, script
from workers.predictors.interface import Execution
from workers.predictors.select import module_for

pytestmark = pytest.mark.slow  # the first export takes seconds

CPU = (InstanceGroup(kind="KIND_CPU"),)
SPEC = ModelSpec(name="affine", backend="pytorch", instance_groups=CPU)
X = np.arange(12, dtype="f4").reshape(4, 3) / 10
BIAS = np.full((4, 1), 2, "f4")
EXPECTED = [each.detach().numpy() for each in affine()(torch.from_numpy(X), torch.from_numpy(BIAS))]


def tensors(*names: str) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=name, datatype="FP32", dims=(-1,)) for name in names)


def described(inputs: tuple[str, str], outputs: tuple[str, str]) -> ModelSpec:
    x, bias = (
        TensorSpec(name=name, datatype="FP32", dims=(size,)) for name, size in zip(inputs, (3, 1), strict=True)
    )
    values = TensorSpec(name=outputs[0], datatype="FP32", dims=(2,))
    sums = TensorSpec(name=outputs[1], datatype="FP32", dims=(1,), reshape=())
    return ModelSpec(
        name="affine",
        backend="pytorch",
        max_batch_size=4,
        inputs=(x, bias),
        outputs=(values, sums),
        instance_groups=CPU,
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(affine(), tmp_path_factory.mktemp("affine") / "1")


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return script(affine(), tmp_path_factory.mktemp("scripted") / "1")


def check(spec: ModelSpec, folder: Path) -> None:
    """Compare the outputs with the module's own."""
    predictor = module_for(spec).load(spec, folder, threads=1)
    names = [each.name for each in spec.inputs]
    found = predictor.predict(Execution(inputs=dict(zip(names, (X, BIAS), strict=True))))
    for output, expected in zip(spec.outputs, EXPECTED, strict=True):
        np.testing.assert_array_equal(found[output.name], expected)
    assert predictor.memory_bytes == 4 * (6 + 2)
    last = spec.outputs[1].name
    inputs = {name: array[:1] for name, array in zip(names, (X, BIAS), strict=True)}
    assert list(predictor.predict(Execution(inputs=inputs, outputs=(last,)))) == [last]


def test_exported_program_describes_itself(program: Path) -> None:
    spec = module_for(SPEC).complete(SPEC, program)
    expected = described(("x", "bias"), ("OUTPUT__0", "OUTPUT__1"))
    assert (spec.max_batch_size, spec.inputs, spec.outputs) == (4, expected.inputs, expected.outputs)
    check(spec, program)


@pytest.mark.parametrize(
    "names", [(("INPUT__0", "INPUT__1"), ("OUTPUT__0", "OUTPUT__1")), (("x", "bias"), ("a", "b"))]
)
@pytest.mark.parametrize("kind", ["program", "scripted"])
def test_names_are_positions_or_declared(
    request: pytest.FixtureRequest, kind: str, names: tuple[tuple[str, str], tuple[str, str]]
) -> None:
    folder = request.getfixturevalue(kind)
    spec = described(*names)
    assert module_for(spec).complete(spec, folder) == spec
    check(spec, folder)


@pytest.mark.parametrize("write", [export, script])
def test_keys_of_a_dict_are_names(tmp_path: Path, write: Callable[[torch.nn.Module, Path], Path]) -> None:
    spec = described(("x", "bias"), ("values", "sums"))
    folder = write(affine(Named), tmp_path / "1")
    assert module_for(spec).complete(spec, folder) == spec
    check(spec, folder)


def test_arguments_may_be_keywords(tmp_path: Path) -> None:
    folder = export(affine(), tmp_path / "1", most=2, keywords=True)
    spec = module_for(SPEC).complete(SPEC, folder)
    assert spec.max_batch_size == 2  # of the program's own limit
    predictor = module_for(spec).load(spec, folder, threads=1)
    found = predictor.predict(Execution(inputs={"bias": BIAS[:2], "x": X[:2]}))
    np.testing.assert_array_equal(found["OUTPUT__0"], EXPECTED[0][:2])


def test_bfloat16_is_computed_from_float32(tmp_path: Path) -> None:
    folder = script(torch.nn.Linear(3, 2).bfloat16(), tmp_path / "1")
    x = TensorSpec(name="INPUT__0", datatype="BF16", dims=(-1, 3))
    y = TensorSpec(name="OUTPUT__0", datatype="BF16", dims=(-1, 2))
    spec = ModelSpec(name="half", backend="pytorch", inputs=(x,), outputs=(y,), instance_groups=CPU)
    found = module_for(spec).load(spec, folder, threads=1).predict(Execution(inputs={"INPUT__0": X}))
    assert (found["OUTPUT__0"].dtype, found["OUTPUT__0"].shape) == (np.float32, (4, 2))


def test_contradictions_are_refused(program: Path, scripted: Path) -> None:
    with pytest.raises(ConfigError, match="model affine has no input y; it has x, bias, or INPUT__0 and so on"):
        spec = described(("x", "y"), ("a", "b"))
        module_for(spec).complete(spec, scripted)
    with pytest.raises(ConfigError, match="model affine has no input y; it has x, bias"):
        module_for(spec).complete(spec, program)
    with pytest.raises(ConfigError, match="model affine is TorchScript, and must declare its inputs and outputs"):
        module_for(SPEC).complete(SPEC, scripted)


def test_pickled_module_is_refused(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    torch.save(affine(), tmp_path / "1" / "model.pt")
    with pytest.raises(ConfigError, match=r"model affine: 1/model\.pt cannot be loaded"):
        module_for(SPEC).load(SPEC, tmp_path / "1", threads=1)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('executed')",)


def changed(program: Path, tmp_path: Path, change: Callable[[str, bytes], bytes], extra: str | None = None) -> Path:
    """Copy a program with changed members."""
    folder = tmp_path / "1"
    folder.mkdir()
    with zipfile.ZipFile(program / "model.pt2") as old, zipfile.ZipFile(folder / "model.pt2", "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
        if extra is not None:
            new.writestr(f"{old.namelist()[0].split('/')[0]}/{extra}", b"")
    return folder


def pickled_weights(name: str, data: bytes) -> bytes:
    if name.endswith("weights_config.json"):
        config = json.loads(data)
        for payload in config["config"].values():
            payload["use_pickle"] = True
        return json.dumps(config).encode()
    return pickle.dumps(Bomb()) if "/weight_" in name else data


def pickled_sample(name: str, data: bytes) -> bytes:
    return pickle.dumps(Bomb()) if "/sample_inputs/" in name else data


def evaluated_size(name: str, data: bytes) -> bytes:
    return data.replace(b'"expr_str": "', b'"expr_str": "__import__(chr(111)) + ') if "/models/" in name else data


def unchanged(name: str, data: bytes) -> bytes:
    return data


@pytest.mark.parametrize(
    ("change", "extra", "reason"),
    [
        (pickled_weights, None, "its tensor layer.weight is pickled"),
        (pickled_sample, None, "its sample inputs are no tensors"),
        (evaluated_size, None, "a symbolic size in it is no arithmetic expression"),
        (unchanged, "data/aotinductor/model/model.so", "it holds data/aotinductor/model/model.so"),
        (unchanged, "data/constants/custom_obj_0", "it holds data/constants/custom_obj_0"),
        (unchanged, "data/weights/model.pt", "it holds data/weights/model.pt"),
    ],
)
def test_archives_with_code_are_refused(
    program: Path, tmp_path: Path, change: Callable[[str, bytes], bytes], extra: str | None, reason: str
) -> None:
    folder = changed(program, tmp_path, change, extra)
    with pytest.raises(ConfigError, match=f"model affine: 1/model.pt2 cannot be loaded: {reason}"):
        module_for(SPEC).load(SPEC, folder, threads=1)


def test_copied_archive_is_loaded(program: Path, tmp_path: Path) -> None:
    folder = changed(program, tmp_path, unchanged)
    module_for(SPEC).load(SPEC, folder, threads=1)


def test_damaged_archive_is_named(program: Path, tmp_path: Path) -> None:
    folder = tmp_path / "1"
    shutil.copytree(program, folder)
    (folder / "model.pt2").write_bytes((folder / "model.pt2").read_bytes()[:500])
    with pytest.raises(ConfigError, match=r"1/model.pt2 cannot be loaded: it is no archive of torch\.export"):
        module_for(SPEC).load(SPEC, folder, threads=1)
