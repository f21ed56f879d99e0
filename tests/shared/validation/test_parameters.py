"""The table of parameters against everything that follows from it."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest

from headrace import SamplingParams as ProgramParams
from producer_api.rpc.inference_pb2 import JobRequest as ProtoJobRequest
from producer_api.schemas.jobs import JobSubmission
from shared.errors import InvalidRequest
from shared.kafka.message import KafkaRequest
from shared.protocol import SamplingParams
from shared.schemas.base import Body
from shared.schemas.openai.chat import ChatRequest
from shared.schemas.openai.completions import CompletionRequest
from shared.schemas.openai.embeddings import EmbeddingRequest
from shared.schemas.openai.responses import ResponseRequest
from shared.schemas.parsing import validate
from shared.settings import Settings
from shared.validation.parameter_definition import Api, Parameter
from shared.validation.parameters import PARAMETERS, RANGED, fields
from shared.validation.request_limits import Limits, check_params
from shared.validation.sampling_parameters import MAX_N, SAMPLING_PARAMETERS

BODIES: list[tuple[Api, type[Body]]] = [
    (Api.CHAT, ChatRequest),
    (Api.COMPLETIONS, CompletionRequest),
    (Api.RESPONSES, ResponseRequest),
    (Api.EMBEDDINGS, EmbeddingRequest),
    (Api.JOBS, JobSubmission),
    (Api.JOBS, KafkaRequest),
]
BY_BODY = pytest.mark.parametrize(("api", "body"), BODIES, ids=[body.__name__ for _, body in BODIES])
SAMPLING = {each.name for each in SAMPLING_PARAMETERS}
# fields with the name of a parameter that have another meaning in these APIs
UNRELATED = {(Api.CHAT, "logprobs"), (Api.CHAT, "echo"), (Api.CHAT, "best_of")} | {
    (Api.EMBEDDINGS, name) for name in ("user", "cache_salt")
}


def test_sampling_params_are_those_of_the_table() -> None:
    found = {each.name: each for each in msgspec.structs.fields(SamplingParams)}
    assert found.keys() == SAMPLING
    params = SamplingParams()
    for each in SAMPLING_PARAMETERS:
        if each.name != "logit_bias":
            assert getattr(params, each.name) == each.default, each.name


def test_the_python_class_takes_what_the_table_says() -> None:
    served_only = {"echo", "best_of"}
    assert fields(Api.LLM).keys() == {each.name for each in msgspec.structs.fields(ProgramParams)} - served_only


@BY_BODY
def test_a_body_has_the_parameters_of_its_api(api: Api, body: type[Body]) -> None:
    names = {name for each in PARAMETERS for others in each.names.values() for name in (*others, each.name)}
    known = {name for name in names & body.model_fields.keys() if (api, name) not in UNRELATED}
    assert fields(api).keys() == known


@BY_BODY
def test_a_body_describes_a_parameter_as_the_table(api: Api, body: type[Body]) -> None:
    for name, parameter in fields(api).items():
        assert parameter.description in (body.model_fields[name].description or ""), name


@BY_BODY
def test_a_schema_has_the_bounds_of_the_table(api: Api, body: type[Body]) -> None:
    properties = body.model_json_schema()["properties"]
    for name, parameter in fields(api).items():
        if parameter.kind in {"integer", "number"} and parameter.maximum is not None:
            low = "exclusiveMinimum" if parameter.above_minimum else "minimum"
            expected = {"type": parameter.kind, low: parameter.minimum, "maximum": parameter.maximum}
            assert properties[name]["anyOf"][0] == expected, name


@BY_BODY
def test_a_body_takes_the_type_of_the_table(api: Api, body: type[Body]) -> None:
    wrong: dict[str, Any] = {
        "integer": 0.5,
        "number": "1",
        "boolean": 1,
        "string": 1.5,
        "list of strings": [1],
        "list of integers": ["x"],
        "list of objects": [1],
        "object": 1,
    }
    required = {"model": "m", "prompt": "x", "input": "x", "messages": [{"role": "user", "content": "x"}]}
    for name, parameter in fields(api).items():
        values = {key: value for key, value in required.items() if key in body.model_fields}
        with pytest.raises(InvalidRequest) as refused:
            validate(json.dumps({**values, name: wrong[parameter.kind]}).encode(), body)
        assert (refused.value.param or "").startswith(name)


def test_grpc_has_the_parameters_of_jobs() -> None:
    assert fields(Api.JOBS).keys() <= set(ProtoJobRequest.DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize("parameter", RANGED, ids=lambda parameter: parameter.name)
def test_the_range_of_the_table_is_enforced(parameter: Parameter) -> None:
    low, high = parameter.minimum, parameter.maximum
    assert low is not None and high is not None
    step = 1 if parameter.kind == "integer" else math.ulp(high)
    limits = Limits.widest()
    check_params(SamplingParams(**{parameter.name: high}), limits)
    outside = [low if parameter.above_minimum else low - step, high + 2 * step]
    for value in outside if parameter.kind == "integer" else [*outside, math.nan, math.inf]:
        with pytest.raises(InvalidRequest, match=rf"{parameter.name} must be .+, got") as refused:
            check_params(SamplingParams(**{parameter.name: value}), limits)
        assert refused.value.param == parameter.name


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (SamplingParams(top_k=-5), "top_k must be between -1 and 1000000, got -5"),
        (SamplingParams(top_p=1.5), "top_p must be between 0 and 1, got 1.5"),
        (SamplingParams(repetition_penalty=0.0), "repetition_penalty must be between 0.00001 and 100, got 0.0"),
        (SamplingParams(n=9), "n must be between 1 and 8, got 9"),
        (SamplingParams(logit_bias={1: 101}), "logit_bias must be between -100 and 100, got 101"),
        (SamplingParams(logit_bias={-1: 1}), "logit_bias: a token id must be between 0 and 2147483647, got -1"),
        (SamplingParams(stop=("",)), "each string of stop must have between 1 and 256 characters"),
        (SamplingParams(stop=("x",) * 17), "stop must have at most 16 strings, got 17"),
    ],
)
def test_an_error_names_field_range_and_value(params: SamplingParams, message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_params(params, Limits())
    assert refused.value.message == message


def test_an_error_cuts_a_number_of_many_digits() -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_params(SamplingParams(top_k=10**400), Limits())
    assert len(refused.value.message) < 100


def test_settings_of_the_table_exist_and_keep_its_bounds() -> None:
    assert {each.setting for each in PARAMETERS if each.setting} <= Settings.model_fields.keys()
    assert any(getattr(bound, "le", None) == MAX_N for bound in Settings.model_fields["max_n"].metadata)
