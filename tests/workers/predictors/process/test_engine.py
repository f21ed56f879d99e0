"""The engine of a predictor that crashes."""

from __future__ import annotations

from pathlib import Path

from shared.errors import EngineFailed
from shared.repository.spec import DynamicBatching
from tests.support.predictors import PredictorDriver, floats, infer, model
from tests.support.python_models import DOUBLING, place
from workers.predictors.engine import PredictorEngine
from workers.predictors.select import module_for


def test_crash_fails_the_request_at_fault_alone(tmp_path: Path) -> None:
    """Given requests of one batch of which one crashes the process, the others get outputs from the next one."""
    batching = DynamicBatching(preferred_batch_size=(3,), max_queue_delay_microseconds=60_000_000)
    spec = model(backend="python", dynamic_batching=batching)
    predictor = module_for(spec).load(spec, place(DOUBLING, tmp_path), threads=1)
    with PredictorDriver.of(PredictorEngine(spec)) as driver:
        driver.engine.add_version("1", [predictor])
        before, crash, after = (driver.start(infer(floats([value]))) for value in (1, -1, 2))
        assert driver.wait(before).array().tolist() == [[2]]
        assert driver.wait(after).array().tolist() == [[4]]
        error = driver.wait(crash).error
        assert isinstance(error, EngineFailed)
        assert error.message == "m failed: its process was ended by SIGABRT"
