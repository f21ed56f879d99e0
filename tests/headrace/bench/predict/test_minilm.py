"""The graph of the packaged MiniLM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from headrace.bench.predict.minilm import INPUTS, OUTPUT, minilm_onnx
from shared.repository.spec import ModelSpec, TensorSpec
from workers.predictors.interface import Execution
from workers.predictors.select import module_for


@pytest.mark.slow
def test_embeddings_equal_those_of_transformers(minilm: Path, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.onnx").symlink_to(minilm_onnx())
    spec = ModelSpec(name="minilm", backend="onnxruntime")
    module = module_for(spec)
    completed = module.complete(spec, tmp_path / "1")
    assert completed.max_batch_size > 1
    assert completed.inputs == tuple(TensorSpec(name=name, datatype="INT64", dims=(-1,)) for name in INPUTS)
    ids = np.array([[101, 7592, 2088, 102], [101, 2054, 102, 0]])
    mask = np.array([[1, 1, 1, 1], [1, 1, 1, 0]])
    call = Execution(inputs=dict(zip(INPUTS, (ids, mask), strict=True)))
    found = module.load(completed, tmp_path / "1", threads=1).predict(call)[OUTPUT]
    model = AutoModel.from_pretrained(minilm, dtype=torch.float32).eval()
    with torch.no_grad():
        states = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).last_hidden_state.numpy()
    expected = (states * mask[..., np.newaxis]).sum(1) / mask.sum(1, keepdims=True)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)
