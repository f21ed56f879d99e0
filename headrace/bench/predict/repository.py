"""The repository that is measured: MiniLM with and without dynamic batching, and a model that adds tensors."""

from __future__ import annotations

import shutil
from pathlib import Path

MOST_ROWS = 16  # of a batch
BATCHED, SINGLE, ADDER = "minilm", "minilm-single", "adder"
ADDER_FILE = "model.onnx"

_BATCHED = f"""
backend: "onnxruntime"
max_batch_size: {MOST_ROWS}
dynamic_batching {{ }}
"""
_SINGLE = """
backend: "onnxruntime"
max_batch_size: 1
"""


def write_repository(folder: Path, minilm: Path) -> None:
    """Write the repository with the graph of MiniLM."""
    for name, config in ((BATCHED, _BATCHED), (SINGLE, _SINGLE)):
        version = folder / name / "1"
        version.mkdir(parents=True)
        shutil.copy(minilm, version / "model.onnx")
        (folder / name / "config.pbtxt").write_text(config, encoding="utf-8")
    for number in (1, 2):
        write_adder(folder / ADDER / str(number))
    (folder / ADDER / "config.pbtxt").write_text("max_batch_size: 16\nversion_policy { all { } }", encoding="utf-8")


def write_adder(version: Path) -> None:
    """Write the graph of a model whose OUTPUT is twice its INPUT, four numbers in each row."""
    import onnx
    from onnx import TensorProto, helper

    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 4]) for name in ("INPUT", "OUTPUT")]
    node = helper.make_node("Add", ["INPUT", "INPUT"], ["OUTPUT"])
    graph = helper.make_graph([node], "adder", tensors[:1], tensors[1:])
    version.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, version / ADDER_FILE)
