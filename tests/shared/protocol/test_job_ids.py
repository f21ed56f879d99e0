"""Ids from which the id of a job follows."""

from __future__ import annotations

import pytest

from shared.protocol import line_job_id, possible_job_ids, record_digest, record_job_id

DIGITS = "01a226b0d0c9f69fe4ef12268a230633"
TASK = "0d1f3f5e-2f0e-4b39-9b4e-6f1d7e0f1a2b"


@pytest.mark.parametrize(
    "given",
    [
        f"{prefix}{DIGITS}{suffix}"
        for prefix, suffix in (
            ("req_", ""),
            ("chatcmpl-", ""),
            ("cmpl-", ""),
            ("resp_", ""),
            ("batch_req_", ""),
            ("msg_", ""),
            ("msg_", "_1"),
            ("rs_", ""),
            ("fc_", "_0"),
            ("ctc_", "_12"),
        )
    ],
)
def test_a_derived_id_names_its_job(given: str) -> None:
    assert possible_job_ids(given, "default") == [f"req_{DIGITS}"]


def test_other_ids_may_be_of_a_celery_task_or_a_record() -> None:
    """A record's id is its tenant's own."""
    found = possible_job_ids(TASK, "acme")
    assert found == [line_job_id(TASK, 0), record_job_id(record_digest("event", "acme", TASK))]
    assert possible_job_ids(TASK, "other")[1] not in found


@pytest.mark.parametrize("given", ["", "x" * 1025, "a\x1bb", "\udc80"])
def test_ids_that_nobody_was_given_name_no_job(given: str) -> None:
    found = possible_job_ids(given, "default")
    assert all(len(each) == len(f"req_{DIGITS}") for each in found)
    assert given == "" or not found
