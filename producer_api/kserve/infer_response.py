"""Response of an inference over HTTP: JSON, and binary data behind it."""

from __future__ import annotations

import msgspec

from producer_api.kserve.classification import classify
from producer_api.kserve.infer_body import HEADER
from producer_api.kserve.parameters import InferCall
from producer_api.kserve.tensor_data import BINARY_ONLY, binary_only, to_json
from producer_api.schemas.kserve import InferResponse, OutputTensor
from shared.protocol import Result, Tensor
from shared.repository.spec import ModelSpec


def outputs_of(result: Result, call: InferCall, spec: ModelSpec) -> list[Tensor]:
    """Return the outputs that a client asked for, in its order, as classes where it wants these.

    Raises InvalidRequest.
    """
    found = {tensor.name: tensor for tensor in result.tensors}
    names = [name for name in call.forms if name in found] or list(found)
    labels = {each.name: each.labels for each in spec.outputs}
    return [
        classify(found[name], call.form(name).classes, batched=spec.max_batch_size > 0, labels=labels.get(name, ()))
        if call.form(name).classes
        else found[name]
        for name in names
    ]


def write(result: Result, call: InferCall, spec: ModelSpec) -> tuple[bytes, dict[str, str]]:
    """Return the body of the response and its headers. Raises InvalidRequest."""
    outputs, binary = [], []
    for tensor in outputs_of(result, call, spec):
        shown = OutputTensor(tensor.name, tensor.datatype, list(tensor.shape))
        if call.form(tensor.name).binary:
            shown.parameters = {"binary_data_size": len(tensor.data)}
            binary.append(tensor.data)
        else:
            shown.data = to_json(tensor)
        outputs.append(shown)
    response = InferResponse(spec.name, result.version, outputs)
    if call.id:
        response.id = call.id
    if result.parameters:
        response.parameters = result.parameters
    head = msgspec.json.encode(response)
    if not any(binary):
        return head, {"content-type": "application/json"}
    return b"".join((head, *binary)), {"content-type": "application/octet-stream", HEADER: str(len(head))}


def check_forms(call: InferCall, spec: ModelSpec) -> None:
    """Raise InvalidRequest, before the inference, for an output that has no form in JSON."""
    for each in spec.outputs:
        wanted = not call.forms or each.name in call.forms
        if wanted and each.datatype in BINARY_ONLY and not call.form(each.name).binary:
            raise binary_only(each.name, each.datatype)
