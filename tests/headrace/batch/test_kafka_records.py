"""Results from Kafka as the answers of the API."""

from __future__ import annotations

from headrace.batch.kafka_records import to_chat_completion
from shared.protocol import FinishReason
from shared.schemas.native.jobs import Job, JobChoice, Links


def test_a_completion_has_the_reasoning_and_the_stop_reason_of_its_job() -> None:
    job = Job(
        id="req_1",
        model="m",
        priority="batch",
        state="completed",
        created_at=1.0,
        links=Links.from_id("req_1"),
        choices=[
            JobChoice(0, "Yes", FinishReason.STOP, reasoning="hm"),
            JobChoice(1, "No", FinishReason.STOP, stop_reason=7),
        ],
    )
    choices = to_chat_completion(job)["choices"]
    first, second = (choice["message"] for choice in choices)
    assert [choice.get("stop_reason") for choice in choices] == [None, 7]
    assert (first["content"], first["reasoning_content"], first["reasoning"]) == ("Yes", "hm", "hm")
    assert second == {"content": "No", "role": "assistant", "refusal": None}
