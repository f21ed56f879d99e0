"""Descriptions of models as config.pbtxt and model.toml, and mutations of them."""

from __future__ import annotations

import random
import re

IO = """
input { name: "x" data_type: TYPE_FP32 dims: [ 3, -1 ] }
output { name: "y" data_type: TYPE_STRING dims: [ 1 ] reshape { shape: [ ] } label_filename: "labels.txt" }
"""
BATCHED = f"""
backend: "onnxruntime" max_batch_size: 8 {IO}
version_policy {{ specific {{ versions: [ 1, 4503599627370496 ] }} }}
dynamic_batching {{
  preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100 preserve_ordering: true
  priority_levels: 2 default_priority_level: 2
  default_queue_policy {{ max_queue_size: 7 }}
  priority_queue_policy {{
    key: 1 value {{ timeout_action: DELAY default_timeout_microseconds: 5 allow_timeout_override: true }}
  }}
}}
instance_group {{ count: 2 kind: KIND_GPU gpus: [ 0, 1 ] }}
model_warmup {{
  name: "zeros" batch_size: 2 count: 3
  inputs {{ key: "x" value {{ data_type: TYPE_FP32 dims: [ 3, 2 ] random_data: true }} }}
}}
parameters {{ key: "threads" value {{ string_value: "2" }} }}
response_cache {{ enable: true }}
default_model_filename: "net.onnx"
"""
SEQUENCE = f"""
platform: "pytorch_libtorch" max_batch_size: 4 {IO}
sequence_batching {{
  oldest {{ max_candidate_sequences: 4 preferred_batch_size: 2 max_queue_delay_microseconds: 9 }}
  control_input {{
    name: "start" control {{ kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] }}
  }}
  control_input {{
    name: "flags"
    control {{ kind: CONTROL_SEQUENCE_END bool_false_true: [ false, true ] }}
    control {{ kind: CONTROL_SEQUENCE_READY fp32_false_true: [ 0.5, 1 ] }}
  }}
  control_input {{ name: "id" control {{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }} }}
  state {{ input_name: "in" output_name: "out" data_type: TYPE_FP32 dims: [ 2 ] }}
}}
"""
ENSEMBLE = f"""
platform: "ensemble" {IO}
ensemble_scheduling {{
  step {{
    model_name: "b" model_version: 3 input_map {{ key: "i" value: "t" }} output_map {{ key: "o" value: "y" }}
  }}
  step {{ model_name: "a" input_map {{ key: "i" value: "x" }} output_map {{ key: "o" value: "t" }} }}
}}
"""
DECOUPLED = f'backend: "python" {IO} version_policy {{ all {{}} }} model_transaction_policy {{ decoupled: true }}'
GENERATING = 'backend: "headrace" parameters { key: "max_model_len" value { string_value: "2048" } }'
TOML = """
backend = "onnx"
max_batch_size = 8
version_policy = { latest = 2 }
response_cache = true

[[inputs]]
name = "x"
type = "FP32"
dims = [3, -1]

[[outputs]]
name = "y"
datatype = "BYTES"
dims = [1]
reshape = []

[dynamic_batching]
preferred_batch_size = [4]
priority_levels = 2
default_priority_level = 1
priority_queue_policy.1 = { max_queue_size = 3, timeout_action = "DELAY" }

[[instance_group]]
count = 2
kind = "CPU"

[[model_warmup]]
name = "zeros"
inputs.x = { type = "FP32", dims = [3, 1], zero_data = true }

[parameters]
threads = 2
fast = true
"""
ALL = (BATCHED, SEQUENCE, ENSEMBLE, DECOUPLED, GENERATING, "")
PIECES = (
    *("{", "}", "[", "]", "<", ">", ":", ",", ";", "#", '"', "'", "\\", "\n", "\0", "\ud800", "é"),
    *("-1", "0", "1e400", "nan", "9" * 30, "0x", "true", '"\\xff"', "[a.b/c]", "TYPE_INVALID", "name", "value"),
)
_WORD = re.compile(r"\w+|\W")


def mutated(text: str, source: random.Random) -> str:
    """Return the text with one to four pieces cut out, doubled, moved, put in or replaced by other words."""
    for _ in range(source.choice((1, 1, 2, 4))):
        if text and source.random() < 0.5:
            words = list(_WORD.finditer(text))
            word, other = source.choice(words), source.choice((*PIECES, *(each[0] for each in words)))
            text = text[: word.start()] + other + text[word.end() :]
            continue
        start = source.randint(0, len(text))
        end = min(len(text), start + source.randint(0, 30))
        piece = text[start:end]
        match source.randrange(4):
            case 0:
                text = text[:start] + text[end:]
            case 1:
                text = text[:end] + piece + text[end:]
            case 2:
                target = source.randint(0, len(text))
                text = text[:target] + piece + text[target:]
            case 3:
                text = text[:start] + source.choice(PIECES) + text[start:]
    return text
