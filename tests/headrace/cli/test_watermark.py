"""`headrace watermark` on files, with the tokenizer of a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.cli.main import app
from shared.errors import ConfigError
from tests.support.checkpoints import CONFIGS, save_checkpoint
from tests.support.typer_internals import CliRunner
from workers.engine.sampling.watermark import green_list
from workers.engine.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("llama"), CONFIGS["llama"])


def run(*args: object, stdin: bytes = b"") -> str:
    done = CliRunner().invoke(app, ["watermark", *map(str, args)], stdin)
    if done.exception:
        raise done.exception
    return done.output


def marked_text(model: Path, length: int) -> str:
    """Return text whose characters are green after each other, with the key of the settings."""
    tokenizer = Tokenizer(model)
    alphabet = tokenizer.encode("abcdefghijklmnopqrstuvwxyz", special=False)
    letters = alphabet[:1]
    pairs: set[tuple[int, int]] = set()
    while len(letters) < length:
        green, last = green_list(15_485_863, 0.5, letters[-1], 272), letters[-1]
        letters.append(next(c for c in alphabet if green[c] and (last, c) not in pairs))
        pairs.add((last, letters[-1]))
    return tokenizer.decode_all(letters)


@pytest.mark.parametrize("algorithm", ["green_list", "gumbel"])
def test_detect_prints_the_evidence(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    monkeypatch.setenv("HEADRACE_WATERMARK_ALGORITHM", algorithm)
    file = tmp_path / "answer.txt"
    file.write_text(marked_text(model, 40))
    found = json.loads(run("detect", file, "--model", model, "--json"))
    assert (found["algorithm"], found["tokens"]) == (algorithm, 40)
    assert (found["p_value"] < 1e-6) == (algorithm == "green_list")
    assert "probability that a text without the watermark" in run("detect", file, "--model", model)


def test_calibrate_prints_rates_of_false_positives(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("It was a dark and stormy night; the river ran high, and the mill stood still. " * 3)
    options = ("--model", model, "--tokens", 60, "--keys", 2)
    own, others = json.loads(run("calibrate", file, *options, "--json"))["rates"]
    assert (own["tests"], others["tests"]) == (3, 6)
    assert own["share_below"].keys() == {"0.05", "0.01", "0.001"}
    assert "random keys" in run("calibrate", file, *options)
    with pytest.raises(ConfigError, match="at least 9000 tokens"):
        run("calibrate", file, "--model", model, "--tokens", 9000)


def test_unreadable_texts_are_refused(model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\xff\xfe\xfa")
    for path, problem in ((broken, "is not text in UTF-8"), (tmp_path / "absent", "cannot be read")):
        with pytest.raises(ConfigError, match=problem):
            run("detect", path, "--model", model)
    with pytest.raises(ConfigError, match="standard input is not text in UTF-8"):
        run("detect", "-", "--model", model, stdin=b"a mill \xff")
    assert json.loads(run("detect", "-", "--model", model, "--json", stdin="Mühle".encode()))["tokens"] == 6
