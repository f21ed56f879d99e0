"""The response cache, alone and in front of a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shared.protocol import Tensor
from shared.repository.spec import DynamicBatching
from tests.support.predictors import Doubler, PredictorDriver, engine_request, floats, infer, model
from workers.predictors.engine import PredictorEngine
from workers.predictors.response_cache import ENTRY_BYTES, ResponseCache, response_digest


def tensors(size: int) -> tuple[Tensor, ...]:
    return (Tensor("Y", "UINT8", (size,), bytes(size)),)


def test_the_least_recently_used_responses_leave_first() -> None:
    cache = ResponseCache(2 * (ENTRY_BYTES + 100))
    cache.put(b"a", tensors(100))
    cache.put(b"b", tensors(100))
    assert cache.get(b"a") is not None
    cache.put(b"c", tensors(100))
    assert [cache.get(key) is not None for key in (b"a", b"b", b"c")] == [True, False, True]
    cache.put(b"d", tensors(150))
    assert cache.size_bytes == ENTRY_BYTES + 150


def test_a_response_larger_than_the_cache_is_not_kept() -> None:
    cache = ResponseCache(ENTRY_BYTES + 10)
    cache.put(b"a", tensors(10))
    cache.put(b"b", tensors(11))
    assert cache.get(b"a") is not None
    assert cache.get(b"b") is None


def test_the_digest_covers_all_that_the_response_depends_on() -> None:
    base = infer(floats([1]))
    works: list[Any] = [
        base,
        infer(floats([2])),
        infer(floats([1]), outputs=("Y",)),
        infer(floats([1]), parameters={"mode": 1}),
        infer(np.array([[1]], "i4"), datatype="INT32"),
        infer(floats([1]), name="Z"),
    ]
    digests = [response_digest(engine_request(work)) for work in works]
    digests.append(response_digest(engine_request(base, tenant="other")))
    assert len(set(digests)) == len(digests)
    assert response_digest(engine_request(infer(floats([1])))) == digests[0]


def serving(doubler: Doubler, **fields: Any) -> Any:
    engine = PredictorEngine(model(**{"response_cache": True, **fields}), cache=ResponseCache(100_000))
    engine.add_version("1", [doubler])
    return PredictorDriver.of(engine)


def test_an_equal_request_of_the_tenant_is_not_executed_again() -> None:
    doubler = Doubler()
    with serving(doubler) as driver:
        asked = [
            driver.ask(infer(floats([value])), tenant=tenant) for value, tenant in ((1, "a"), (1, "a"), (1, "b"))
        ]
        assert [answer.array().tolist() for answer in asked] == [[[2]]] * 3
        counts = driver.engine.statistics()["1"]
    assert len(doubler.calls) == 2
    assert (counts.cache_hit.count, counts.cache_miss.count, counts.success.count) == (1, 2, 3)
    assert (counts.inference_count, counts.execution_count) == (2, 2)


@pytest.mark.parametrize("version", ["1", "2"])
def test_another_version_or_the_same_one_loaded_again_has_no_responses(version: str) -> None:
    first, second = Doubler(), Doubler()
    with serving(first) as driver:
        driver.ask(infer(floats([1])))
        driver.engine.add_version(version, [second])
        driver.ask(infer(floats([1])))
    assert len(second.calls) == 1


def test_failed_requests_and_models_without_a_cache_are_executed() -> None:
    doubler = Doubler()
    with serving(doubler) as driver:
        for _ in range(2):
            assert driver.ask(infer(floats([-1]))).error is not None
    with serving(doubler, response_cache=False) as driver:
        for _ in range(2):
            driver.ask(infer(floats([1])))
    assert len(doubler.calls) == 4


def test_a_cached_response_keeps_the_order() -> None:
    doubler = Doubler(gate=True)
    with serving(doubler, dynamic_batching=DynamicBatching(preserve_ordering=True)) as driver:
        doubler.let_go()
        driver.ask(infer(floats([1])))
        slow = driver.start(infer(floats([2])))
        doubler.await_begin()
        doubler.await_begin()
        cached = driver.start(infer(floats([1])))
        refused = driver.start(infer(floats([1]), name="Z"))  # handled after the cached one
        driver.wait(refused)
        assert driver.order[1:] == [refused]
        doubler.let_go()
        driver.wait(cached)
        assert driver.order[2:] == [slow, cached]
