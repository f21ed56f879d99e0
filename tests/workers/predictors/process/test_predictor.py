"""Instances in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from shared.errors import ConfigError, Unavailable
from shared.repository.spec import ModelSpec
from tests.support.onnx_models import place as place_graph
from tests.support.onnx_models import scaled_sum
from tests.support.python_models import COMMANDED, COUNTING, SPEC, items, place, texts, with_parameters
from tests.support.redis_servers import until
from workers.predictors.interface import Predictor, PredictorLost
from workers.predictors.process import predictor as process_predictor
from workers.predictors.process.child_process import ModelFailed
from workers.predictors.select import module_for


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return place(COMMANDED, tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def lab(folder: Path) -> Iterator[Predictor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_REDIS_URL", "redis://:secret@host")
        opened = load(SPEC, folder)
        yield opened
        opened.close()


def load(spec: ModelSpec, folder: Path) -> Predictor:
    return module_for(spec).load(spec, folder, threads=1)


def test_inputs_and_outputs_are_arrays(lab: Predictor) -> None:
    assert items(lab.predict(texts("echo", "ö", ""))) == ["echo", "ö", ""]


def test_process_has_no_settings_and_little_of_headrace(lab: Predictor) -> None:
    found = items(lab.predict(texts("names")))
    assert not [name for name in found if name.startswith("HEADRACE_")]
    assert not {"torch", "redis", "structlog", "onnxruntime"} & set(found)


def test_memory_is_that_of_the_process(lab: Predictor) -> None:
    assert 5_000_000 < lab.memory_bytes < 200_000_000


def test_failed_execution_keeps_the_process_and_its_secrets(lab: Predictor) -> None:
    before = items(lab.predict(texts("process")))
    with capture_logs() as entries:
        with pytest.raises(ModelFailed, match=r"^KeyError$"):
            lab.predict(texts("fault"))
        until(lambda: any(each.get("line") == "KeyError" for each in entries))
    assert "in fault" in str(entries)
    assert "a secret" not in str([each for each in entries if "raise" not in each["line"]])
    assert items(lab.predict(texts("process"))) == before


def test_outputs_of_an_unsupported_type_are_the_models_failure(lab: Predictor) -> None:
    with pytest.raises(ModelFailed, match=r"^TypeError$"):
        lab.predict(texts("nonsense"))


def test_output_is_logged(lab: Predictor) -> None:
    with capture_logs() as entries:
        lab.predict(texts("say"))
        until(lambda: any(each.get("line") == "a sentence" for each in entries))
    assert {"event": "predictor_output", "model": "lab", "line": "a sentence", "log_level": "info"} in entries


@pytest.mark.parametrize(
    ("command", "reason"), [("crash", "was ended by SIGSEGV"), ("exit", "exited with the status 3")]
)
def test_lost_process_is_replaced(lab: Predictor, command: str, reason: str) -> None:
    with pytest.raises(PredictorLost, match=f"its process {reason}"):
        lab.predict(texts(command))
    assert items(lab.predict(texts("echo"))) == ["echo"]


def test_process_that_dies_idle_is_replaced(lab: Predictor) -> None:
    before = items(lab.predict(texts("process")))[0]
    with capture_logs() as entries:
        os.kill(int(before), signal.SIGKILL)
        until(lambda: any(each["event"] == "predictor_process_ended" for each in entries))
    assert items(lab.predict(texts("process")))[0] != before


def test_hanging_process_is_ended(folder: Path) -> None:
    predictor = load(with_parameters(execution_timeout="0.5"), folder)
    with pytest.raises(PredictorLost, match=r"did not answer within 0\.5 s, and was ended"):
        predictor.predict(texts("hang"))
    predictor.close()


def test_memory_limit_ends_the_process(folder: Path) -> None:
    predictor = load(with_parameters(memory_limit="500M"), folder)
    with pytest.raises(PredictorLost, match="its process ran out of memory"):
        predictor.predict(texts("eat"))
    assert items(predictor.predict(texts("echo"))) == ["echo"]
    predictor.close()


@pytest.mark.slow
def test_pauses_grow_while_processes_execute_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_predictor, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(process_predictor, "MAX_PAUSE_S", 0.03)
    predictor = load(SPEC, folder)
    with capture_logs() as entries:
        for command in ("crash", "crash", "crash", "crash", "echo", "crash"):
            if command == "echo":
                predictor.predict(texts(command))
                continue
            with pytest.raises(PredictorLost):
                predictor.predict(texts(command))
        predictor.predict(texts("echo"))
    predictor.close()
    assert [each["pause_s"] for each in entries if "pause_s" in each] == [0, 0.01, 0.02, 0.03, 0]


@pytest.mark.slow
def test_requests_do_not_wait_for_long_pauses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_predictor, "FIRST_PAUSE_S", 3600.0)
    predictor = load(SPEC, folder)
    for _ in range(2):
        with pytest.raises(PredictorLost):
            predictor.predict(texts("crash"))
    monkeypatch.setattr(process_predictor, "REPLACEMENT_WAIT_S", 0.01)
    with pytest.raises(Unavailable, match="the process of model lab has ended and is not yet replaced"):
        predictor.predict(texts("echo"))
    predictor.close()


def test_model_that_cannot_be_imported_says_why(tmp_path: Path) -> None:
    folder = place("import no_such_module\n", tmp_path)
    with pytest.raises(ConfigError, match=r"version 1 cannot be loaded: ModuleNotFoundError: .*'no_such_module'"):
        load(SPEC, folder)


def test_model_that_crashes_while_it_loads_says_why(tmp_path: Path) -> None:
    folder = place("import os\nos.abort()\n", tmp_path)
    with pytest.raises(ConfigError, match="version 1 cannot be loaded: its process was ended by SIGABRT"):
        load(SPEC, folder)


def test_close_while_the_model_loads_ends_it(tmp_path: Path) -> None:
    folder = place("import signal\nprint('loading')\nsignal.pause()\n", tmp_path)
    predictor = process_predictor.ProcessPredictor(process_predictor.Launch(SPEC, folder, 1))
    failures: list[Exception] = []

    def start() -> None:
        try:
            predictor.start()
        except ConfigError as error:
            failures.append(error)

    with capture_logs() as entries:
        thread = threading.Thread(target=start)
        thread.start()
        until(lambda: any(each.get("line") == "loading" for each in entries))
        predictor.close()
        thread.join()
    assert "SIGKILL" in str(failures)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"memory_limit": "much"},
            "parameter memory_limit of model lab must be bytes, or a number with the suffix",
        ),
        ({"execution_timeout": "0"}, "parameter execution_timeout of model lab must be seconds"),
        ({"python": "/no/python"}, "model lab: /no/python cannot be executed: No such file or directory"),
        ({"EXECUTION_ENV_PATH": "env.tar.gz"}, "EXECUTION_ENV_PATH is not supported"),
        ({"process": "shared"}, "parameter process of model lab must be own, got 'shared'"),
    ],
)
def test_invalid_parameters_are_refused(folder: Path, parameters: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(with_parameters(**parameters), folder)


def test_stream_ends_with_its_reader(tmp_path: Path) -> None:
    folder = place(COUNTING, tmp_path)
    spec = ModelSpec(name="lab", backend="python", inputs=SPEC.inputs, outputs=SPEC.outputs, decoupled=True)
    predictor = load(spec, folder)
    assert [items(each) for each in predictor.stream(texts("3"))] == [["0"], ["1"], ["2"]]
    endless = predictor.stream(texts("1000000"))
    assert items(next(endless)) == ["0"]
    endless.close()  # type: ignore[attr-defined]
    assert [items(each) for each in predictor.stream(texts("1"))] == [["0"]]
    predictor.close()


def test_any_framework_can_have_its_own_process(tmp_path: Path) -> None:
    folder = place_graph(scaled_sum(), tmp_path, "sum")
    shared = ModelSpec(name="sum", backend="onnxruntime")
    own = ModelSpec(name="sum", backend="onnxruntime", parameters={"process": "own"})
    assert module_for(own) is process_predictor
    completed = process_predictor.complete(own, folder)
    assert completed.inputs == module_for(shared).complete(shared, folder).inputs
    (folder / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ConfigError, match=r"model sum: 1/model.onnx cannot be loaded"):
        load(completed, folder)


PROGRAM = """
import os, signal, sys, threading
from pathlib import Path
from tests.support.python_models import SPEC, items, texts
from tests.support.redis_servers import until
from workers.predictors.select import module_for

predictor = module_for(SPEC).load(SPEC, Path(sys.argv[1]), threads=1)
print(items(predictor.predict(texts("process")))[0], file=sys.stderr)
threading.Thread(target=predictor.predict, args=(texts("hang", sys.argv[2]),), daemon=True).start()
until(Path(sys.argv[2]).exists)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_process_ends_with_the_worker(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, folder, tmp_path / "hangs"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    child = Path("/proc") / found.stderr.strip()
    until(lambda: not child.exists() or child.joinpath("stat").read_text().split()[2] == "Z")
