"""Names and attributes of spans that other tests do not show."""

from __future__ import annotations

import msgspec
import pytest

from shared.protocol import Embed, Infer, Pool, SamplingParams, Score, Structured, Terminal, Usage, Work
from shared.protocol import RequestState as State
from shared.tracing.conventions import answered, http_span, inference_span
from tests.support.fakes import make_request


@pytest.mark.parametrize(
    ("work", "operation"),
    [
        (None, "text_completion"),
        (Embed(("a",), dimensions=8), "embeddings"),
        (Pool(("a",)), "pool"),
        (Score(("a",), ("b",)), "score"),
        (Infer(inputs=()), "infer"),
    ],
)
def test_each_kind_of_work_is_an_operation(work: Work | None, operation: str) -> None:
    start = inference_span(msgspec.structs.replace(make_request(), work=work))
    assert start.name == f"{operation} scripted"
    assert start.attributes["gen_ai.operation.name"] == operation
    assert ("gen_ai.embeddings.dimension.count" in start.attributes) is (operation == "embeddings")
    assert ("gen_ai.request.temperature" in start.attributes) is (work is None)


def test_parameters_with_an_effect_are_recorded() -> None:
    params = SamplingParams(n=2, top_k=5, structured_outputs=Structured(json_object=True), stop=("canary",))
    found = inference_span(msgspec.structs.replace(make_request(), params=params)).attributes
    shown = ("choice.count", "top_k", "max_tokens", "stop_sequences")
    assert [found.get(f"gen_ai.request.{name}") for name in shown] == [2, 5.0, None, None]
    assert found["gen_ai.output.type"] == "json"


def test_the_usage_and_the_ends_of_choices_are_recorded() -> None:
    end = Terminal(State.COMPLETED, Usage(7, 5, 2, 3))
    found = answered(make_request(), end, {1: "length", 0: "stop"})
    assert found["gen_ai.response.finish_reasons"] == ["stop", "length"]
    usage = ("input_tokens", "output_tokens", "reasoning.output_tokens", "cache_read.input_tokens")
    assert [found[f"gen_ai.usage.{name}"] for name in usage] == [7, 5, 2, 3]


def test_an_unknown_method_and_path_are_not_recorded() -> None:
    start = http_span("CANARY", "")
    assert (start.name, start.attributes["http.request.method"]) == ("HTTP", "_OTHER")
    assert "CANARY" not in str(start)
