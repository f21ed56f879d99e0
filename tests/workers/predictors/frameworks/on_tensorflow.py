"""SavedModels, with TensorFlow in an environment of its own (`scripts/test-tensorflow`)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shared.errors import ConfigError
from shared.repository.spec import DynamicBatching, ModelSpec, TensorSpec
from workers.predictors.interface import Execution
from workers.predictors.select import module_for

PYTHON = os.environ["TEST_TENSORFLOW"]
SPEC = ModelSpec(name="affine", backend="tensorflow", parameters={"python": PYTHON})
PROGRAM = """
import sys
import tensorflow as tf

class Affine(tf.Module):
    def __init__(self):
        self.weight = tf.Variable(2.0)

    @tf.function(
        input_signature=[tf.TensorSpec([None, 3], tf.float32, "x"), tf.TensorSpec([None, 1], tf.string, "t")]
    )
    def serve(self, x, t):
        return {"y": self.weight * x + 1, "u": tf.strings.upper(t)}

model = Affine()
tf.saved_model.save(model, sys.argv[1], signatures=model.serve)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("affine") / "1"
    subprocess.run([PYTHON, "-c", PROGRAM, made / "model.savedmodel"], check=True)
    return made


def test_saved_model_is_described_and_computed(folder: Path) -> None:
    module = module_for(SPEC)
    completed = module.complete(SPEC, folder)
    assert (completed.max_batch_size, completed.dynamic_batching) == (4, DynamicBatching())
    text, x = TensorSpec(name="t", datatype="BYTES", dims=(1,)), TensorSpec(name="x", datatype="FP32", dims=(3,))
    assert completed.inputs == (text, x)
    predictor = module.load(completed, folder, threads=1)
    rows = np.arange(6, dtype="f4").reshape(2, 3)
    found = predictor.predict(Execution(inputs={"x": rows, "t": np.array([[b"a"], [b"b"]], dtype=object)}))
    assert np.array_equal(found["y"], 2 * rows + 1)
    assert found["u"].tolist() == [[b"A"], [b"B"]]
    assert predictor.memory_bytes > 50_000_000
    predictor.close()


def test_missing_signature_is_named(folder: Path) -> None:
    spec = ModelSpec(
        name="affine", backend="tensorflow", parameters={"python": PYTHON, "TF_SIGNATURE_DEF": "other"}
    )
    with pytest.raises(ConfigError, match="it has no signature other, only serving_default"):
        module_for(spec).complete(spec, folder)


def test_missing_package_names_the_extra(folder: Path) -> None:
    spec = ModelSpec(name="affine", backend="tensorflow", parameters={"python": sys.executable})
    with pytest.raises(ConfigError, match=r"model affine needs the package tensorflow: pip install"):
        module_for(spec).complete(spec, folder)
