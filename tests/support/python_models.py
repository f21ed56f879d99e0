"""Models of Python classes, each the text of a file model.py."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from shared.repository.spec import ModelSpec, TensorSpec
from workers.predictors.interface import Arrays, Execution

TEXT = TensorSpec(name="text", datatype="BYTES", dims=(-1,))
SPEC = ModelSpec(name="lab", backend="python", inputs=(TEXT,), outputs=(TEXT,))

COMMANDED = '''
import os
import signal
import sys

import numpy as np

print("imported")


class Model:
    """Does what its first input says."""

    def predict(self, inputs):
        command = inputs["text"][0].decode()
        return getattr(self, command)(inputs)

    def echo(self, inputs):
        return inputs

    def names(self, inputs):
        secrets = [name for name in os.environ if name.startswith("HEADRACE_")]
        return {"text": np.array([*secrets, *sorted(sys.modules)], dtype=object)}

    def process(self, inputs):
        return {"text": np.array([str(os.getpid())], dtype=object)}

    def say(self, inputs):
        print("a sentence")
        return inputs

    def fault(self, inputs):
        raise KeyError("a secret")

    def crash(self, inputs):
        os.kill(os.getpid(), signal.SIGSEGV)

    def exit(self, inputs):
        os._exit(3)

    def hang(self, inputs):
        for path in inputs["text"][1:]:
            open(path, "x").close()
        signal.pause()

    def eat(self, inputs):
        return {"text": np.ones(1 << 30)}

    def nonsense(self, inputs):
        return {"text": np.array([object()])}
'''

TRITON = '''
import json
import threading

import numpy as np
import triton_python_backend_utils as pb_utils

import helper


class TritonPythonModel:
    """Doubles numbers; a decoupled one counts up to the first one, or its cancelled requests if that is -1."""

    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "x", "data_type": "TYPE_FP32", "dims": [-1]})
        config.add_output({"name": "y", "data_type": "TYPE_FP32", "dims": [-1]})
        config.set_max_batch_size(8)
        config.set_dynamic_batching()
        return config

    def initialize(self, args):
        config = json.loads(args["model_config"])
        described = pb_utils.get_output_config_by_name(config, "y")
        self.type = pb_utils.triton_string_to_numpy(described["data_type"])
        self.cancelled = 0
        self.decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        assert args["model_version"] == "1" and args["model_name"] == config["name"]

    def execute(self, requests):
        if self.decoupled:
            for request in requests:
                threading.Thread(target=self.count, args=(request, request.get_response_sender())).start()
            return None
        return [self.double(request) for request in requests]

    def double(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        if x.size == 0:
            error = pb_utils.TritonError("x is empty", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(output_tensors=[], error=error)
        if x.flat[0] < 0:
            raise pb_utils.TritonModelException("x is negative")
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", helper.double(x).astype(self.type))])

    def count(self, request, sender):
        end = int(pb_utils.get_input_tensor_by_name(request, "x").as_numpy().flat[0])
        for number in range(end) if end >= 0 else (self.cancelled,):
            if sender.is_cancelled():
                self.cancelled += 1
                break
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([[number]], self.type))]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def finalize(self):
        print("finalized")
'''

COUNTING = """
import numpy as np


class Model:
    def predict(self, inputs):
        for number in range(int(inputs["text"][0])):
            yield {"text": np.array([str(number)], dtype=object)}
"""

DOUBLING = """
import os


class Model:
    def predict(self, inputs):
        if (inputs["X"] < 0).any():
            os.abort()
        return {"Y": inputs["X"] * 2}
"""


def place(source: str, repository: Path, **helpers: str) -> Path:
    """Write model.py and modules beside it into the folder of a version, and return the folder."""
    folder = repository / "1"
    folder.mkdir(parents=True)
    for name, text in {"model": source, **helpers}.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def with_parameters(**parameters: str) -> ModelSpec:
    return msgspec.structs.replace(SPEC, parameters=parameters)


def texts(*items: str) -> Execution:
    return Execution(inputs={"text": np.array([each.encode() for each in items], dtype=object)})


def items(outputs: Arrays) -> list[str]:
    return [item.decode() for item in outputs["text"].tolist()]
