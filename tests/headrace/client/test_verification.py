"""Comparison of recordings: the first token that differs, and the reasons."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.client.verification import Place, checked, compare
from shared.errors import InvalidRequest


def recording(*answers: list[int], end: str = "stop", **fields: Any) -> dict[str, Any]:
    choices = [
        {"index": index, "token_ids": ids, "texts": [f"t{i}" for i in ids], "finish_reason": end}
        for index, ids in enumerate(answers)
    ]
    return {
        "request": {},
        "prompt_token_ids": [1],
        "choices": choices,
        "fingerprint": "fp_1",
        "computation": {"weights": "a" * 64, "vectors": "AVX2", "quantization": "none"},
        "runs": 1,
        **fields,
    }


def test_equal_answers_are_the_same() -> None:
    found = compare(recording([1, 2], [3]), recording([1, 2], [3]))
    assert (found.same, found.tokens, found.reasons) == (True, 3, ())


@pytest.mark.parametrize(
    ("computed", "position", "logged_place", "computed_place"),
    [
        (recording([1, 2], [3, 5]), 1, Place(4, "t4"), Place(5, "t5")),
        (recording([1, 2], [3]), 1, Place(4, "t4"), Place(None, "stop")),
        (recording([1, 2], [3, 4, 6]), 2, Place(None, "stop"), Place(6, "t6")),
        (recording([1, 2]), 0, Place(3, "t3"), Place(None, "")),
    ],
)
def test_the_first_difference_is_named(
    computed: dict[str, Any], position: int, logged_place: Place, computed_place: Place
) -> None:
    found = compare(recording([1, 2], [3, 4]), computed).difference
    assert found is not None
    assert (found.choice, found.position) == (1, position)
    assert (found.logged, found.computed) == (logged_place, computed_place)


def test_another_end_is_a_difference() -> None:
    found = compare(recording([1]), recording([1], end="length")).difference
    assert found is not None
    assert (found.position, found.logged.text, found.computed.text) == (1, "stop", "length")


def test_reasons_name_what_differs() -> None:
    now = {"weights": "b" * 64, "vectors": "AVX512", "quantization": "none", "torch": "2.13.0"}
    found = compare(
        recording([1]), recording([2], computation=now, fingerprint="fp_2", prompt_token_ids=[2], runs=2)
    )
    assert found.reasons == (
        "torch: unknown then, 2.13.0 now",
        "vectors: AVX2 then, AVX512 now",
        "weights: aaaaaaaa… then, bbbbbbbb… now",
        "the token ids of the prompt differ",
        "several workers ran the request in turn; with mixed_workers = allow, they may have differed",
    )
    assert compare(recording([1]), recording([1], fingerprint="fp_2")).reasons == (
        "fingerprint: fp_1 then, fp_2 now",
    )
    on_gpu = {"device": "NVIDIA"}
    unequal = compare(recording([1], computation=on_gpu), recording([2], computation=on_gpu))
    assert unequal.reasons == ("on this device, answers depend on their batch unless batch_invariant is set",)


@pytest.mark.parametrize(
    "junk", [None, 1, [], {}, {**recording([1]), "runs": "1"}, {**recording(), "choices": [{"index": 0}]}]
)
def test_other_files_are_refused(junk: Any) -> None:
    with pytest.raises(InvalidRequest, match="must hold a recording"):
        checked(junk, "the file")
    uneven = recording([1, 2])
    uneven["choices"][0]["texts"].pop()
    with pytest.raises(InvalidRequest, match="must hold a recording"):
        checked(uneven, "the file")
