"""TGI's rules for a body, in its words, and what a body becomes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer_api.http.errors import TGI, TGI_GRAMMAR
from producer_api.schemas.feature_extraction import FeatureExtractionRequest
from producer_api.schemas.tgi import GenerateParameters, GenerateRequest, TgiLimits
from shared.errors import HeadraceError, InvalidRequest
from shared.protocol import Embed, Request, SamplingParams
from shared.schemas.parsing import validate
from shared.settings import load
from shared.validation.request_limits import Limits, check_request

LIMITS = TgiLimits(best_of=2, stop_sequences=4, input_length=100)


def read(fields: dict[str, Any], limits: TgiLimits = LIMITS, *, stream: bool = False, inputs: Any = "x") -> Request:
    """Return the draft of a body with these parameters, checked as admission does it."""
    body = validate(json.dumps({"inputs": inputs, "parameters": fields}).encode(), GenerateRequest)
    draft = body.to_request("t", limits, stream=stream)
    check_request(Request(id="r", model="m", prompt=draft.prompt, params=draft.params), Limits())
    return draft


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"best_of": 3}, "`best_of` must be > 0 and <= 2. Given: 3"),
        ({"best_of": 0}, "`best_of` must be > 0 and <= 2. Given: 0"),
        ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
        ({"best_of": 2, "do_sample": True, "seed": 1}, "`seed` must not be set when `best_of` > 1"),
        ({"temperature": 0}, "`temperature` must be strictly positive"),
        ({"temperature": -0.5}, "`temperature` must be strictly positive"),
        ({"repetition_penalty": 0}, "`repetition_penalty` must be strictly positive"),
        ({"frequency_penalty": 2.5}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ({"frequency_penalty": -2.5}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ({"top_p": 1}, "`top_p` must be > 0.0 and < 1.0"),
        ({"top_p": 0}, "`top_p` must be > 0.0 and < 1.0"),
        ({"typical_p": 1.0}, "`typical_p` must be > 0.0 and < 1.0"),
        ({"typical_p": -1}, "`typical_p` must be > 0.0 and < 1.0"),
        ({"top_k": 0}, "`top_k` must be strictly positive"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
        ({"stop": ["a"] * 5}, "`stop` supports up to 4 stop sequences. Given: 5"),
        ({"top_n_tokens": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
        ({"truncate": 0}, "`truncate` must be strictly positive and less than 100. Given: 0"),
        ({"truncate": 101}, "`truncate` must be strictly positive and less than 100. Given: 101"),
    ],
)
def test_each_broken_rule_has_tgis_text(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(fields)
    assert refused.value.message == text
    assert refused.value.param == f"parameters.{[name for name in fields if name in text][-1]}"
    assert TGI.response(refused.value, "/").status_code == 422


def test_empty_inputs_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"^`inputs` cannot be empty$"):
        read({}, inputs="")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"best_of": 2, "do_sample": True}, "`best_of` != 1 is not supported when streaming tokens"),
        ({"decoder_input_details": True}, "`decoder_input_details` == true is not supported when streaming tokens"),
    ],
)
def test_what_cannot_be_streamed_is_refused(fields: dict[str, Any], text: str) -> None:
    read(fields)
    with pytest.raises(InvalidRequest) as refused:
        read(fields, stream=True)
    assert refused.value.message == text


def test_settings_decide_how_many_answers_may_compete() -> None:
    settings = load({"max_best_of": 4, "max_n": 3}).settings
    three = {"best_of": 3, "do_sample": True}
    assert read(three, TgiLimits.from_settings(settings, None)).params.n == 3
    with pytest.raises(InvalidRequest, match=r"^`best_of` must be > 0 and <= 3"):
        read({**three, "best_of": 4}, TgiLimits.from_settings(settings, None))
    with pytest.raises(InvalidRequest, match=r"^`best_of` != 1 is not allowed for this endpoint$"):
        read(three, TgiLimits(best_of=1, stop_sequences=4, input_length=None))


@pytest.mark.parametrize("fields", [{"adapter_id": "lora"}])
def test_what_is_not_built_is_refused_by_name(fields: dict[str, Any]) -> None:
    [name] = fields
    with pytest.raises(InvalidRequest, match=f"parameters.{name}.*does not support"):
        read(fields)


def test_values_without_effect_are_accepted() -> None:
    off = {"adapter_id": None, "watermark": False, "best_of": 1, "stop": [], "grammar": None, "top_n_tokens": 0}
    assert read(off).params == SamplingParams(temperature=0.0, include_stop_str_in_output=True, best_of=1)


@pytest.mark.parametrize(
    ("fields", "temperature"),
    [
        ({}, 0.0),
        ({"do_sample": False}, 0.0),
        ({"do_sample": True}, 1.0),
        ({"temperature": 0.5}, 0.5),
        ({"temperature": 1.0}, 0.0),
        ({"temperature": 1.0, "top_k": 5}, 1.0),
        ({"top_p": 0.5}, 1.0),
        ({"typical_p": 0.5, "do_sample": False}, 1.0),
    ],
)
def test_tokens_are_drawn_only_for_sampling_parameters(fields: dict[str, Any], temperature: float) -> None:
    assert read(fields).params.temperature == temperature


def test_a_body_without_parameters_samples() -> None:
    body = validate(b'{"inputs": "x"}', GenerateRequest)
    assert body.to_request("t", LIMITS, stream=False).params.temperature == 1.0


def test_parameters_reach_the_engine() -> None:
    fields = {"temperature": 0.7, "top_k": 3, "top_p": 0.9, "typical_p": 0.8, "frequency_penalty": -1}
    fields |= {"repetition_penalty": 1.2, "stop": ["a", "b"], "max_new_tokens": 7, "truncate": 9}
    fields["watermark"] = True
    draft = read({**fields, "details": True, "top_n_tokens": 3, "decoder_input_details": True})
    assert draft.params == SamplingParams(
        **{name: fields[name] for name in ("temperature", "top_k", "top_p", "typical_p", "watermark")},
        frequency_penalty=-1,
        repetition_penalty=1.2,
        stop=("a", "b"),
        include_stop_str_in_output=True,
        max_tokens=7,
        logprobs=3,
        echo=True,
    )
    assert (draft.prompt, draft.prompt_options.truncate_prompt_tokens, draft.refuse_overflow) == ("x", 9, True)


@pytest.mark.parametrize(
    ("grammar", "expected"),
    [
        ({"type": "json", "value": {"type": "object"}}, {"json_schema": '{"type": "object"}', "strict": False}),
        ({"type": "json_object", "value": '{"a": 1}'}, {"json_schema": '{"a": 1}', "strict": False}),
        ({"type": "regex", "value": "a+"}, {"regex": "a+"}),
        (
            {"type": "json_schema", "value": {"name": "n", "schema": {}, "strict": True}},
            {"json_schema": "{}", "strict": True},
        ),
    ],
)
def test_grammars_constrain_the_answer(grammar: dict[str, Any], expected: dict[str, Any]) -> None:
    found = read({"grammar": grammar}).params.structured_outputs
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    "grammar",
    [
        {"type": "json", "value": "{"},
        {"type": "json", "value": 1},
        {"type": "regex", "value": "("},
        {"type": "json_schema", "value": {}},
        {"type": "lark", "value": ""},
        {"value": "x"},
    ],
)
def test_a_wrong_grammar_is_named(grammar: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read({"grammar": grammar})
    assert str(refused.value.param).startswith(TGI_GRAMMAR)
    assert "grammar" in TGI.body(refused.value, "/")["error"]


@pytest.mark.parametrize("seed", [0, 5, 2**63, 2**64 - 1])
def test_seeds_have_64_bits_without_a_sign(seed: int) -> None:
    body = validate(json.dumps({"inputs": "x", "parameters": {"seed": seed}}).encode(), GenerateRequest)
    assert body.given_seed is not None
    assert -(2**63) <= body.given_seed < 2**63
    assert body.given_seed % 2**64 == seed


def test_texts_to_embed_are_split_into_requests() -> None:
    body = validate(json.dumps({"inputs": ["x"] * 40, "normalize": True}).encode(), FeatureExtractionRequest)
    works = [each.work for each in body.to_requests("t")]
    assert [len(work.inputs) for work in works if isinstance(work, Embed)] == [32, 8]
    for name, value in (("truncate", True), ("prompt_name", "query")):
        with pytest.raises(InvalidRequest, match=f"^{name}"):
            validate(json.dumps({"inputs": "x", name: value}).encode(), FeatureExtractionRequest)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = sorted(GenerateParameters.model_fields)
GRAMMARS = st.fixed_dictionaries(
    {"type": st.sampled_from(["json", "json_object", "regex", "json_schema", "x"]), "value": JSON}
)
NUMBERS = st.integers() | st.floats() | st.booleans() | st.none()
PARAMETERS = st.dictionaries(st.sampled_from(NAMES), NUMBERS | JSON | GRAMMARS, max_size=5)


@given(
    st.fixed_dictionaries({"inputs": st.text(max_size=5) | JSON, "parameters": PARAMETERS | JSON}), st.booleans()
)
def test_any_body_gives_a_request_or_a_typed_error(body: dict[str, Any], stream: bool) -> None:
    try:
        read(body["parameters"], stream=stream, inputs=body["inputs"])
    except HeadraceError as error:
        response = TGI.response(error, "/generate")
        assert response.status_code == 422
        assert json.loads(response.body).keys() == {"error", "error_type"}
