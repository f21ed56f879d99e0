"""`headrace sim autoscale`: outputs, files, and errors that name the option."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from headrace.cli.main import app
from headrace.cli.options import print_json
from headrace.sim.step_times import SMOLLM2, StepTimes
from shared.errors import ConfigError, HeadraceError
from tests.support.typer_internals import CliRunner


def run(*options: str) -> str:
    result = CliRunner().invoke(app, ["sim", "autoscale", *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_arrivals_of_a_file_are_compared_and_plotted(tmp_path: Path) -> None:
    arrivals = tmp_path / "arrivals.csv"
    arrivals.write_text("at_s,prompt_tokens,answer_tokens\n400,10,5\n100.5,10,5\n")
    plot = tmp_path / "plot.svg"
    found = json.loads(run("--arrivals", str(arrivals), "--plot", str(plot), "--policies", "fixed,keda", "--json"))
    assert found["arrivals"] == 2
    assert list(found["policies"]) == ["fixed", "keda"]
    assert found["policies"]["keda"]["wait_p99_s"] == pytest.approx(60.0)
    assert found["policies"]["fixed"]["slo"] == 1.0
    drawn = {kind: ET.parse(plot).findall(f".//{{*}}{kind}") for kind in ("polyline", "text")}
    fixed, keda = (
        [point.split(",")[1] for point in line.get("points", "").split()] for line in drawn["polyline"][:2]
    )
    assert len(set(fixed)) == 1  # ten workers at all times, also between two samples
    assert len(set(keda)) > 1
    assert "cost, worker hours" in {text.text for text in drawn["text"]}
    assert "keda" in run("--arrivals", str(arrivals))


def test_measured_steps_come_from_a_file(tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text('{"decode_s": {"1": 0.01, "3": 0.03}, "prompt_token_s": 0.002}')
    times = StepTimes.read(own)
    assert [times.seconds(answers) for answers in (1, 2, 3, 6)] == pytest.approx([0.01, 0.02, 0.03, 0.06])
    bench = tmp_path / "bench.json"
    bench.write_text('{"policies": {}, "steps": {"without": [0.02, 0.04], "with_it": [0.06]}}')
    assert StepTimes.read(bench) == StepTimes({1: 0.03, 32: 0.06}, SMOLLM2.prompt_token_s)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("--step-times", "no json", "is not JSON"),
        ("--step-times", '{"decode_s": {"1": -1}, "prompt_token_s": 0}', "must hold"),
        ("--step-times", "[1]", "must hold"),
        ("--step-times", '{"decode_s": {"1": "NaN"}, "prompt_token_s": 0}', "must hold"),
        ("--step-times", '{"decode_s": {"1": 1e-300}, "prompt_token_s": 0}', "must hold"),
        ("--step-times", '{"decode_s": {"1": 1e300}, "prompt_token_s": 0}', "must hold"),
        ("--step-times", '{"decode_s": {"1%s": 1}, "prompt_token_s": 0}' % ("0" * 400), "must hold"),
        ("--step-times", "[" * 100_000, "is not JSON"),
        ("--arrivals", "at_s,prompt_tokens\n1,2\n", "line 2"),
        ("--arrivals", "at_s,prompt_tokens,answer_tokens\n1e12,2,3\n", "at_s must be between 0 and 2678400"),
        ("--arrivals", "at_s,prompt_tokens,answer_tokens\n1,2%s,3\n" % ("0" * 400), "between 1 and 10000000"),
        ("--arrivals", "at_s,prompt_tokens,answer_tokens\n-1,2,3\n", "at_s must be between 0"),
        ("--arrivals", "at_s,prompt_tokens,answer_tokens\n", "at least one arrival"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, name: str, text: str, words: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        CliRunner().invoke(app, ["sim", "autoscale", name, str(path)], catch_exceptions=False)


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    for options, words in (
        (("--policies", "hpa"), "--policies must be a list of fixed"),
        (("--policies", " ,"), "--policies must be a list of fixed.*, got nothing"),
        (("--requests", "1", "--seed", "3"), "a day without requests"),
        (("--min", "5", "--max", "4"), "--min must be at most --max, 4, got 5"),
        (("--arrivals", str(tmp_path / "none")), "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=words):
            CliRunner().invoke(app, ["sim", "autoscale", *options], catch_exceptions=False)


def test_workers_that_cannot_keep_up_end_the_run(tmp_path: Path) -> None:
    arrivals = tmp_path / "arrivals.csv"
    arrivals.write_text("at_s,prompt_tokens,answer_tokens\n0,10000000,10000000\n")
    options = ("--arrivals", str(arrivals), "--policies", "keda")
    with pytest.raises(HeadraceError, match="cannot keep up") as refused:
        times = tmp_path / "times.json"
        times.write_text('{"decode_s": {"1": 1}, "prompt_token_s": 1}')
        arguments = ["sim", "autoscale", *options, "--step-times", str(times)]
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert not isinstance(refused.value, ConfigError)


def test_json_has_null_for_what_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [math.nan, (1.5, -math.inf)], "b": {"c": math.inf}, "d": "NaN"})
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found == {"a": [None, [1.5, None]], "b": {"c": None}, "d": "NaN"}
