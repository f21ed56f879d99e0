"""A repository of small real models, for clients of KServe's protocol."""

from __future__ import annotations

from pathlib import Path

ADD_SUB = '''
class Model:
    """Adds and subtracts."""

    def predict(self, inputs):
        a, b = inputs["INPUT0"], inputs["INPUT1"]
        return {"OUTPUT0": a + b, "OUTPUT1": a - b}
'''
REPEAT = '''
class Model:
    """Sends each number of its input as a response."""

    def predict(self, inputs):
        for number in inputs["IN"]:
            yield {"OUT": number.reshape(1)}
'''
SUMS = '''
class Model:
    """Adds its input to the state of a sequence."""

    def predict(self, inputs):
        total = inputs["STATE_IN"] + inputs["IN"]
        return {"OUT": total, "STATE_OUT": total}
'''
CONFIGS = {
    "add_sub": """
        backend: "python"
        max_batch_size: 8
        dynamic_batching { max_queue_delay_microseconds: 1000 }
        input [
          { name: "INPUT0" data_type: TYPE_INT32 dims: [ -1 ] },
          { name: "INPUT1" data_type: TYPE_INT32 dims: [ -1 ] }
        ]
        output [
          { name: "OUTPUT0" data_type: TYPE_INT32 dims: [ -1 ] label_filename: "labels.txt" },
          { name: "OUTPUT1" data_type: TYPE_INT32 dims: [ -1 ] }
        ]
        version_policy { all {} }
    """,
    "repeat": """
        backend: "python"
        model_transaction_policy { decoupled: true }
        input [ { name: "IN" data_type: TYPE_INT32 dims: [ -1 ] } ]
        output [ { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
    """,
    "sums": """
        backend: "python"
        max_batch_size: 4
        sequence_batching {
          oldest { max_candidate_sequences: 4 }
          state [ {
            input_name: "STATE_IN" output_name: "STATE_OUT" data_type: TYPE_INT32 dims: [ 1 ]
          } ]
        }
        input [ { name: "IN" data_type: TYPE_INT32 dims: [ 1 ] } ]
        output [ { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
    """,
    "twice": """
        platform: "ensemble"
        max_batch_size: 8
        input [ { name: "X" data_type: TYPE_INT32 dims: [ -1 ] } ]
        output [ { name: "Y" data_type: TYPE_INT32 dims: [ -1 ] } ]
        ensemble_scheduling { step [ {
          model_name: "add_sub" model_version: -1
          input_map { key: "INPUT0" value: "X" }
          input_map { key: "INPUT1" value: "X" }
          output_map { key: "OUTPUT0" value: "Y" }
        } ] }
    """,
}
SOURCES = {"add_sub": ADD_SUB, "repeat": REPEAT, "sums": SUMS}


def write_repository(root: Path) -> None:
    """Write the models: add_sub (versions 1 and 2), repeat (decoupled), sums (sequences), twice (an ensemble)."""
    for name, config in CONFIGS.items():
        (root / name).mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(config, encoding="utf-8")
        for version in ("1", "2") if name == "add_sub" else ("1",):
            folder = root / name / version
            folder.mkdir()
            if name in SOURCES:
                (folder / "model.py").write_text(SOURCES[name], encoding="utf-8")
    (root / "add_sub" / "labels.txt").write_text("zero\none\n", encoding="utf-8")
    (root / "broken" / "1").mkdir(parents=True)
    (root / "broken" / "config.pbtxt").write_text('backend: "python"\nmax_batch_sise: 1\n', encoding="utf-8")
