"""Memory on the GPU, as heartbeats report it."""

from __future__ import annotations

import pytest
import torch

from workers.engine.execution.gpu_memory import MEASURE_INTERVAL_S, GpuMemory


def test_without_a_gpu_there_is_none() -> None:
    assert GpuMemory(torch.device("cpu")).used() is None


def test_the_allocator_is_asked_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    now = 1000.0

    def memory_reserved(device: torch.device) -> int:
        asked.append(device)
        return 100 * len(asked)

    monkeypatch.setattr("torch.cuda.memory_reserved", memory_reserved)
    memory = GpuMemory(torch.device("cuda", 1), clock=lambda: now)
    assert [memory.used() for _ in range(3)] == [100, 100, 100]
    now += MEASURE_INTERVAL_S
    assert memory.used() == 200
    assert asked == [torch.device("cuda", 1)] * 2
