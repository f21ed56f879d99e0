"""Small ONNX graphs."""

from __future__ import annotations

from pathlib import Path

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, checker, helper, save

BATCH = ["batch", 4]


def scaled_sum() -> ModelProto:
    """Return a graph with Y = A + B and Z = A * B of rows of four numbers."""
    nodes = [helper.make_node("Add", ["A", "B"], ["Y"]), helper.make_node("Mul", ["A", "B"], ["Z"])]
    return _graph(nodes, [_float("A"), _float("B")], [_float("Y"), _float("Z")])


def copied_texts() -> ModelProto:
    """Return a graph that returns the texts T as U, and the shape of T as S."""
    texts = [helper.make_tensor_value_info(name, TensorProto.STRING, ["batch", "n"]) for name in "TU"]
    shape = helper.make_tensor_value_info("S", TensorProto.INT64, [2])
    nodes = [helper.make_node("Identity", ["T"], ["U"]), helper.make_node("Shape", ["T"], ["S"])]
    return _graph(nodes, texts[:1], [texts[1], shape])


def place(model: ModelProto, repository: Path, name: str, version: int = 1) -> Path:
    """Write a graph into the folder of a version, and return the folder."""
    folder = repository / name / str(version)
    folder.mkdir(parents=True)
    save(model, str(folder / "model.onnx"))
    return folder


def _float(name: str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, BATCH)


def _graph(nodes: list[NodeProto], inputs: list[ValueInfoProto], outputs: list[ValueInfoProto]) -> ModelProto:
    graph = helper.make_graph(nodes, "graph", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    checker.check_model(model)
    return model
