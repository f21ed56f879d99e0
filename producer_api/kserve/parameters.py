"""Parameters of a request for inference, the same in JSON and in gRPC messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from producer_api.schemas.kserve import MAX_PARAMETERS
from shared.errors import InvalidRequest, NotSupported
from shared.protocol import Infer, Parameter, SequenceStep

EMPTY_FINAL_RESPONSE = "triton_enable_empty_final_response"
FINAL_RESPONSE = "triton_final_response"  # of the responses of a stream
RESERVED = "triton_"
MAX_UINT32, MAX_INT64, MAX_UINT64 = 2**32 - 1, 2**63 - 1, 2**64 - 1
SHARED_MEMORY = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size")  # of tensors


@dataclass(frozen=True)
class OutputForm:
    """The form that a client wants of an output: binary data or JSON; its most likely `classes` if that is set."""

    binary: bool = False
    classes: int = 0


@dataclass(frozen=True)
class InferCall:
    """A request for inference, as a client sent it.

    Attributes:
        id: the client's own, which its response repeats.
        forms: of the outputs that it names.
        default: of all outputs, if it names none.
        empty_final: it wants an empty response after the last one.
    """

    id: str
    work: Infer
    forms: Mapping[str, OutputForm] = field(default_factory=dict)
    default: OutputForm = OutputForm()
    empty_final: bool = False

    def form(self, output: str) -> OutputForm:
        return self.forms.get(output, self.default)


def make_work(work: Infer, parameters: Mapping[str, Parameter]) -> Infer:
    """Return the work with a request's parameters, except those of its response. Raises InvalidRequest."""
    if len(parameters) > MAX_PARAMETERS:
        raise InvalidRequest(f"parameters must have at most {MAX_PARAMETERS} entries", param="parameters")
    left = dict(parameters)
    level = _integer(left, "priority", MAX_UINT32)
    timeout = _integer(left, "timeout", MAX_INT64)
    sequence = _sequence(left)
    for name in left:
        if name.startswith(RESERVED):
            raise InvalidRequest(
                f"the parameter {name[:64]!r} is not allowed: names that start with {RESERVED} are reserved",
                param="parameters",
            )
    return Infer(
        inputs=work.inputs,
        outputs=work.outputs,
        version=work.version,
        level=level,
        timeout_us=timeout,
        sequence=sequence,
        parameters=left,
    )


def _sequence(left: dict[str, Parameter]) -> SequenceStep | None:
    given = left.pop("sequence_id", 0)
    start, end = take_flag(left, "sequence_start"), take_flag(left, "sequence_end")
    if not isinstance(given, str) and not (type(given) is int and 0 <= given <= MAX_UINT64):
        raise InvalidRequest(
            f"sequence_id must be a string, or an integer between 0 and {MAX_UINT64}", param="sequence_id"
        )
    if isinstance(given, str) and len(given.encode()) > 128:
        raise InvalidRequest("sequence_id must have at most 128 bytes", param="sequence_id")
    return SequenceStep(given, start, end) if given else None


def take_flag(left: dict[str, Parameter], name: str, *, default: bool = False) -> bool:
    """Remove a parameter that is true or false, and return it. Raises InvalidRequest."""
    value = left.pop(name, default)
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} must be true or false", param=name)
    return value


def _integer(left: dict[str, Parameter], name: str, most: int) -> int:
    value = left.pop(name, 0)
    if type(value) is not int or not 0 <= value <= most:
        raise InvalidRequest(f"{name} must be an integer between 0 and {most}", param=name)
    return value


def output_form(name: str, parameters: Mapping[str, Parameter], *, binary: bool) -> OutputForm:
    """Return the form that the parameters of a requested output ask for. Raises InvalidRequest, NotSupported.

    Args:
        binary: the form without the parameter `binary_data`.
    """
    refuse_shared_memory(f"output {name}", parameters)
    left = dict(parameters)
    return OutputForm(take_flag(left, "binary_data", default=binary), _integer(left, "classification", MAX_UINT32))


def refuse_shared_memory(what: str, parameters: Mapping[str, Parameter]) -> None:
    """Raises NotSupported."""
    for name in SHARED_MEMORY:
        if name in parameters:
            raise NotSupported(f"{name} of {what} is not supported: send the data in the request", param=name)
