"""`headrace bench engine`: its peers and their figures."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import cast

import pytest

from headrace.bench.engine.engine_only import run_mix
from headrace.bench.engine.engine_throughput import OURS, Comparison
from headrace.bench.harness.report import decode_rate
from headrace.bench.harness.subprocess_run import run_in_subprocess
from headrace.bench.harness.workload import SEQUENTIAL_REQUESTS, WorkItem, make_mix, peer_mix
from headrace.bench.peers.peers import find_peers
from shared.errors import ConfigError, HeadraceError
from shared.protocol import Message, Token
from workers.engine.engine import Engine
from workers.engine.interface import EngineOutput, EngineRequest


def test_peers_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Given vLLM installed and llama.cpp only in part, vLLM has its interpreter, and llama.cpp is reported."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("vllm", "llamacpp"):
        (tmp_path / "headrace" / "peers" / name).mkdir(parents=True)
    (tmp_path / "headrace" / "peers" / "vllm" / "ready").write_text("1")

    peers, missing = find_peers("hf,vllm,llamacpp")

    assert [peer.name for peer in peers] == ["hf", "vllm"]
    assert [peer.python for peer in peers] == [sys.executable, str(tmp_path / "headrace/peers/vllm/bin/python")]
    assert missing == ["llamacpp"]
    assert find_peers("none") == ([], [])
    [[own], _] = find_peers("headrace-int8")
    assert own.arguments == ("int8",)
    with pytest.raises(ConfigError, match="got tgi"):
        find_peers("hf,tgi")


def test_ratios_are_medians_of_pairs() -> None:
    """Ratios of all tokens, and of those after the first of an answer, which not every engine reports."""
    rates: dict[str, list[float]] = {OURS: [100, 50, 100], "vllm": [50, 50, 80], "llamacpp": [100, 10, 50]}
    comparison = Comparison(rates, {OURS: [120, 60, 120], "llamacpp": [100, 100, 100]})
    found = comparison.as_dict()
    assert found["ratios"] == {"vllm": 1.25, "llamacpp": 2.0}
    assert found["decode_ratios"] == {"llamacpp": 1.2}
    assert comparison.table().row_count == 5


class TimedEngine:
    """Engine in which a step with prompts takes 9 s, and another one 0.5 s."""

    def __init__(self) -> None:
        self.now = 0.0
        self.tokenizer = self
        self._added: list[EngineRequest] = []
        self._left: dict[str, int] = {}

    def encode_chat(self, messages: list[Message]) -> list[int]:
        return [0] * len(messages)

    def add(self, request: EngineRequest) -> None:
        self._added.append(request)

    def has_work(self) -> bool:
        return bool(self._added or self._left)

    def step(self) -> list[EngineOutput]:
        self.now += 9.0 if self._added else 0.5
        begun = {request.id: request.params.max_tokens or 0 for request in self._added}
        step = begun or self._left
        left = {name: count - 1 for name, count in step.items()}
        self._left = {name: count for name, count in {**self._left, **left}.items() if count}
        self._added = []
        return [EngineOutput(name, (Token(0, 0, ""),), finished=not count) for name, count in left.items()]


def test_decode_rate_leaves_out_the_time_to_the_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a second answer of three tokens in 1 s, and a first one of five in 11 s, beside the third prompt."""
    engine = TimedEngine()
    monkeypatch.setattr(time, "perf_counter", lambda: engine.now)
    run = run_mix(cast("Engine", engine), [WorkItem("word", 1, tokens) for tokens in (5, 3, 1)], 2)
    assert (run.tokens, run.rate, run.waits) == (9, 0.45, [9.0, 9.0, 9.0])
    assert run.decode_rate == (4 + 2) / (11 + 1)
    assert decode_rate(0, 0.0) is None


def test_sequential_requests_are_the_first_of_the_mix() -> None:
    assert peer_mix(3, 1) == make_mix(3)[:SEQUENTIAL_REQUESTS]
    assert peer_mix(3, 32) == make_mix(3)


def test_figures_are_found_among_other_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "noisy.py").write_text("""print('{"rate": 2}'); print("INFO shutting down")""")
    (tmp_path / "mute.py").write_text("print('nothing')")
    monkeypatch.chdir(tmp_path)
    assert run_in_subprocess("noisy") == {"rate": 2}
    with pytest.raises(HeadraceError, match="no figures"):
        run_in_subprocess("mute")


def test_a_failed_side_reports_its_error() -> None:
    with pytest.raises(HeadraceError, match="No module named"):
        run_in_subprocess("headrace.bench.nothing")
