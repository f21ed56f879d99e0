"""Check of the upstream server by `headrace doctor`."""

from __future__ import annotations

from headrace.doctor.upstream_check import examine_upstream
from shared.settings import load
from tests.support.fake_upstream import serving


def test_a_server_and_its_model_are_reported() -> None:
    with serving() as server:
        server.models = [{"id": "m", "owned_by": "vllm", "max_model_len": 99}]
        found = examine_upstream(load({"runtime": "upstream", "upstream_url": server.url}).settings)
        assert (found.status, found.found) == ("ok", f"{server.url}: m, context of 99 tokens, server vllm")
        wrong = {"runtime": "upstream", "upstream_url": server.url, "upstream_model": "other"}
        found = examine_upstream(load(wrong).settings)
    assert (found.status, found.remedy) == ("failed", "correct upstream_model")
    found = examine_upstream(load({"runtime": "upstream", "upstream_url": server.url}).settings)
    assert found.status == "failed"
    assert "cannot be reached" in found.found
