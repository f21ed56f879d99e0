"""Random JSON objects as request bodies."""

from __future__ import annotations

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.errors import HeadraceError
from shared.schemas.native.jobs import JobRequest
from shared.schemas.openai.chat import ChatRequest
from shared.schemas.parsing import validate
from shared.validation.request_limits import Limits, check_request
from tests.support.api_server import chat

NAMES = [
    *chat(),
    "temperature",
    "n",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "max_tokens",
    "tools",
    "tool_choice",
    "response_format",
    "structured_outputs",
    "logit_bias",
]
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
BODIES = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), ANY_JSON, max_size=6)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES)
def test_any_json_object_is_a_draft_or_a_refusal(body: dict) -> None:
    for schema in (ChatRequest, JobRequest):
        for content in (body, chat(**body)):
            try:
                parsed = validate(json.dumps(content).encode(), schema)  # with NaN, as Python clients write it
                draft = parsed.to_request("t")
                check_request(draft, Limits())
            except HeadraceError as error:
                assert error.status == 400
