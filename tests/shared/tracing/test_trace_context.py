import pytest

from shared.tracing.trace_context import trace_id_of, valid_traceparent

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
VALID = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize("given", [VALID, f"cc-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01-more"])
def test_a_valid_traceparent_of_any_version_is_passed_on_as_version_00(given: str) -> None:
    assert valid_traceparent(given) == VALID
    assert trace_id_of(VALID) == TRACE


@pytest.mark.parametrize(
    "given",
    [
        "",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"{VALID}-more",
        f"{VALID}\n",
        f"cc-{TRACE}-{SPAN}-01more",
        f"cc-{TRACE}-{SPAN}-01-{'a' * 512}",
    ],
)
def test_an_invalid_traceparent_is_ignored(given: str) -> None:
    assert valid_traceparent(given) == ""
