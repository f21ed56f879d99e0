"""Report of a client program: one line of JSON for each feature that it tried."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

URL = os.environ["HEADRACE_URL"]  # of the API, without /v1
GRPC = os.environ["HEADRACE_GRPC"]  # host:port
MODEL = os.environ["HEADRACE_MODEL"]
EMBEDDER = os.environ["HEADRACE_EMBEDDER"]
KEY = os.environ["HEADRACE_KEY"]
LIMIT_S = int(os.environ["HEADRACE_FEATURE_LIMIT_S"])  # guards against a hang
_features = []


def feature(name):
    """Add a function to the features to try. It raises if the feature fails; a text that it returns is a remark."""

    def add(function):
        _features.append((name, function))
        return function

    return add


def run_command(name, *words, **options):
    """Run a command of the client's environment and return its output. Raise AssertionError with its last line."""
    command = [str(Path(sys.executable).parent / name), *words]
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=LIMIT_S, check=False, **options
    )
    print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
    said = (done.stderr or done.stdout).split("\n")
    assert done.returncode == 0, next((line for line in reversed(said) if line.strip()), "no output")
    return done.stdout


def main():
    for name, function in _features:
        try:
            remark = function()
            if inspect.isawaitable(remark):
                remark = asyncio.run(remark)
            report = {"feature": name, "works": True, "remark": remark or ""}
        except Exception as error:
            traceback.print_exc()
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            report = {"feature": name, "works": False, "remark": reason[:200]}
        print(json.dumps(report), flush=True)
