"""`headrace bench engine`: its peers and their figures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from headrace.bench.engine.engine_throughput import OURS, Comparison
from headrace.bench.harness.subprocess_run import run_in_subprocess
from headrace.bench.harness.workload import SEQUENTIAL_REQUESTS, make_mix, peer_mix
from headrace.bench.peers.peers import find_peers
from shared.errors import ConfigError, HeadraceError


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
    comparison = Comparison({OURS: [100, 50, 100], "vllm": [50, 50, 80], "llamacpp": [100, 10, 50]})
    assert comparison.as_dict()["ratios"] == {"vllm": 1.25, "llamacpp": 2.0}
    assert comparison.table().row_count == 3


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
