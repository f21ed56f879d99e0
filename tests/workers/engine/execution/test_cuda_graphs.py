"""Steps padded to the sizes of CUDA graphs give the same answers; without a GPU, a stand-in computes the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch

from shared.protocol import PriorityClass, SamplingParams
from tests.support.checkpoints import DEVICE, random_prompts
from tests.support.engine_driver import GREEDY, drain, load, run
from workers.engine.engine import Engine
from workers.engine.execution.cuda_graphs import StepGraphs, graph_sizes
from workers.engine.interface import EngineRequest
from workers.engine.models.llama import Llama


@dataclass(frozen=True)
class ReplayedGraph:
    """Stand-in for a CUDA graph on any device."""

    graphs: StepGraphs
    size: int

    def replay(self) -> None:
        self.graphs._compute(self.size)


Loader = Callable[..., Engine]


@pytest.fixture
def recorded(llama: Path, monkeypatch: pytest.MonkeyPatch) -> Loader:
    """Return a function that loads an engine whose steps are replayed."""

    def loaded(**settings: Any) -> Engine:
        with monkeypatch.context() as patch:
            if DEVICE.type == "cpu":
                patch.setattr(Llama, "recordable", True)
                patch.setattr(StepGraphs, "_record", lambda graphs, size: ReplayedGraph(graphs, size))  # noqa: PLW0108  binds
            return load(llama, **settings)

    return loaded


def padded(engine: Engine) -> StepGraphs:
    graphs = engine._runner._graphs
    assert graphs is not None
    return graphs


def test_graph_sizes_end_at_the_largest_step_or_at_512() -> None:
    assert graph_sizes(5, invariant=False) == (1, 2, 4, 5)
    assert graph_sizes(8, invariant=False) == (1, 2, 4, 8)
    assert graph_sizes(4096, invariant=False)[-1] == 512
    assert graph_sizes(4096, invariant=True) == (4096,)
    assert graph_sizes(8, invariant=True) == graph_sizes(16, invariant=True) == (512,), "whatever the chunks"


@pytest.mark.parametrize("budget", [1, 13, 48])
@pytest.mark.parametrize("invariant", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_answers_are_the_same_with_graphs(llama: Path, recorded: Loader, budget: int, invariant: bool) -> None:
    """Includes preemptions, block copies of forked choices, and steps of all sizes up to the budget."""
    expected = run(load(llama, device="cpu"), random_prompts(12))
    settings = {"max_num_batched_tokens": budget, "max_num_seqs": 6, "block_size": 4, "num_kv_blocks": 30}
    engine = recorded(**settings, max_model_len=96, batch_invariant=invariant)
    assert padded(engine).max_rows == (512 if invariant else budget)
    assert run(engine, random_prompts(12)) == expected
    params = SamplingParams(temperature=1.0, seed=5, n=3, max_tokens=9)
    answers = []
    for other in (engine, load(llama, device="cpu")):
        other.add(EngineRequest("r", (7, 8, 9, 10, 11), params))
        found = drain(other)
        answers.append([found.ids("r", choice) for choice in range(3)])
    assert answers[0] == answers[1]


def test_padding_does_not_write_to_blocks_of_the_pool(recorded: Loader) -> None:
    """Given a pool of marked blocks, three rows padded to four write three slots of them."""
    engine = recorded(num_kv_blocks=8, block_size=4)
    padded(engine)
    for cache in engine._runner._caches:
        cache.values.fill_(7.0)
    engine.add(EngineRequest("r", (1, 2, 3), GREEDY))
    engine.step()
    for cache in engine._runner._caches:
        assert (cache.values[:8] != 7.0).any(dim=(1, 3)).sum() == 3
        assert (cache.values[8] != 7.0).any()


def test_prompt_with_more_scored_rows_than_sequences(llama: Path, recorded: Loader) -> None:
    """Given room for two sequences, 20 tokens are scored as in a step that computes all logits at once."""
    params = SamplingParams(temperature=0.0, max_tokens=2, logprobs=1, echo=True)
    scores = []
    for engine in (recorded(max_num_seqs=2), load(llama, device="cpu")):
        engine.add(EngineRequest("r", tuple(range(40, 60)), params))
        outputs = []
        while engine.has_work():
            outputs += engine.step()
        scores.append([token.logprobs.logprob for token in outputs[0].prompt[1:] if token.logprobs])
    assert len(scores[0]) == 19
    torch.testing.assert_close(torch.tensor(scores[0]), torch.tensor(scores[1]), rtol=1e-4, atol=1e-4)


def test_step_is_abandoned_before_its_graph(recorded: Loader) -> None:
    engine = recorded()
    expected = run(engine, [[5, 6, 7]])
    asked = count()
    engine.abandon_when(lambda: next(asked) == 0)
    engine.add(EngineRequest("0", (5, 6, 7), GREEDY, priority=PriorityClass.BATCH))
    assert engine.step() == []
    assert engine.step() != []
    assert next(asked) == 2, "once a step"
    assert drain(engine).ids("0") == expected[0][1:]


def test_model_that_cannot_be_recorded_runs_without_graphs(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given code that waits for the device, a warning is logged and the answers are the same."""
    expected = run(load(llama, device="cpu"), random_prompts(3))

    def fails(graphs: StepGraphs, size: int) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Llama, "recordable", True)
    monkeypatch.setattr(StepGraphs, "_record", fails)
    with structlog.testing.capture_logs() as logs:
        engine = load(llama)
    assert [entry["log_level"] for entry in logs if entry["event"] == "graphs_unavailable"] == ["warning"]
    assert run(engine, random_prompts(3)) == expected
