"""Metrics under Triton's names."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from tests.support.predictors import Doubler, PredictorDriver, floats, infer, model
from workers.predictors.engine import PredictorEngine
from workers.predictors.metrics import PredictorCollector
from workers.predictors.response_cache import ResponseCache


def test_each_version_is_shown_under_tritons_names() -> None:
    ticks = iter(range(0, 10**12, 1_000_000))
    engine = PredictorEngine(model(), clock=lambda: next(ticks))
    registry, collector = CollectorRegistry(), PredictorCollector()
    registry.register(collector)
    collector.add(engine)
    with PredictorDriver.of(engine) as driver:
        engine.add_version("1", [Doubler()])
        engine.add_version("2", [Doubler()])
        driver.ask(infer(floats([1], [2])))
        driver.ask(infer(floats([-1])))
        text = generate_latest(registry).decode()
    lines = set(text.splitlines())
    assert {
        'nv_inference_request_success{model="m",version="2"} 1.0',
        'nv_inference_request_success{model="m",version="1"} 0.0',
        'nv_inference_request_failure{model="m",reason="BACKEND",version="2"} 1.0',
        'nv_inference_request_failure{model="m",reason="REJECTED",version="2"} 0.0',
        'nv_inference_count{model="m",version="2"} 2.0',
        'nv_inference_exec_count{model="m",version="2"} 1.0',
        'nv_inference_pending_request_count{model="m",version="2"} 0.0',
        'nv_inference_first_response_histogram_ms_bucket{le="100",model="m",version="2"} 1.0',
        'nv_inference_first_response_histogram_ms_bucket{le="+Inf",model="m",version="2"} 1.0',
        'nv_inference_first_response_histogram_ms_count{model="m",version="2"} 1.0',
    } <= lines
    for part in ("queue", "compute_input", "compute_infer", "compute_output", "request"):
        name = f'nv_inference_{part}_duration_us{{model="m",version="2"}}'
        assert any(line.startswith(name) and not line.endswith(" 0.0") for line in lines)
        assert f'nv_inference_{part}_summary_us_count{{model="m",version="2"}} 1.0' in lines
        name = f'nv_inference_{part}_summary_us{{model="m",quantile="0.99",version="2"}}'
        assert any(line.startswith(name) and not line.endswith(" 0.0") for line in lines)
    assert "nv_cache_num_hits_per_model{" not in text


def test_a_removed_model_is_gone_and_the_cache_is_shown() -> None:
    engine = PredictorEngine(model(response_cache=True), cache=ResponseCache(10_000))
    collector = PredictorCollector()
    registry = CollectorRegistry()
    registry.register(collector)
    collector.add(engine)
    with PredictorDriver.of(engine) as driver:
        engine.add_version("1", [Doubler()])
        for _ in range(3):
            driver.ask(infer(floats([1])))
        labels = {"model": "m", "version": "1"}
        assert registry.get_sample_value("nv_cache_num_hits_per_model", labels) == 2
        assert registry.get_sample_value("nv_cache_num_misses_per_model", labels) == 1
        replacement = PredictorEngine(model())
        collector.add(replacement)
        assert registry.get_sample_value("nv_inference_count", labels) == 1
        replacement.add_version("1", [Doubler()])
        assert registry.get_sample_value("nv_inference_count", labels) == 0
        collector.remove(replacement)
        replacement.close()
        collector.remove(engine)
        assert registry.get_sample_value("nv_inference_count", labels) is None
