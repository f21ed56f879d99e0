"""The repository that is measured: two models with and without dynamic batching, and one that adds tensors."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # only this benchmark needs it
    from onnx import NodeProto, TensorProto

MOST_ROWS = 16  # of a batch
MINILM, DENSE, ADDER = "minilm", "dense", "adder"
SINGLE = "-single"  # after the name of a model without dynamic batching
GRAPH = "model.onnx"
WIDTH, LAYERS = 2048, 8  # of the dense model: 134 MB of weights, which one row reads as often as a batch does

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

    def add(name: str, config: str, write: Callable[[Path], object]) -> None:
        version = folder / name / "1"
        version.mkdir(parents=True)
        write(version / GRAPH)
        (folder / name / "config.pbtxt").write_text(config, encoding="utf-8")

    for suffix, config in (("", _BATCHED), (SINGLE, _SINGLE)):
        add(MINILM + suffix, config, lambda file: shutil.copy(minilm, file))
        add(DENSE + suffix, config, write_dense)
    add(ADDER, _BATCHED, write_adder)


def write_adder(file: Path) -> None:
    """Write the graph of a model whose OUTPUT is twice its INPUT, four numbers in each row."""
    from onnx import helper

    _save(file, [helper.make_node("Add", ["INPUT", "INPUT"], ["OUTPUT"])], 4)


def write_dense(file: Path) -> None:
    """Write the graph of a model that multiplies each row by LAYERS matrices of WIDTH."""
    import numpy as np
    from onnx import helper, numpy_helper

    matrices = np.random.default_rng(0).standard_normal((LAYERS, WIDTH, WIDTH), np.float32) / WIDTH**0.5
    weights = [numpy_helper.from_array(matrix, f"w{number}") for number, matrix in enumerate(matrices)]
    names = ["INPUT", *(f"h{number}" for number in range(1, LAYERS)), "OUTPUT"]
    nodes = [
        helper.make_node("MatMul", [names[number], f"w{number}"], [names[number + 1]]) for number in range(LAYERS)
    ]
    _save(file, nodes, WIDTH, weights)


def _save(file: Path, nodes: list[NodeProto], width: int, weights: list[TensorProto] | None = None) -> None:
    """Write a graph from INPUT to OUTPUT, rows of `width` numbers."""
    import onnx
    from onnx import helper

    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["rows", width]) for name in ("INPUT", "OUTPUT")
    ]
    graph = helper.make_graph(nodes, "measured", ends[:1], ends[1:], weights or [])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)
