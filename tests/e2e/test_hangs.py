"""Workers that hang under `headrace up`: they are replaced, and their streams go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from headrace.client import HeadraceClient
from tests.support.followed_job import follow, scripted_tokens
from tests.support.launched_server import Launched
from tests.support.waiting import LIMIT_S

pytestmark = pytest.mark.slow

TOKENS = 300
STREAMS = [f"stream {number} [pace 10]" for number in range(6)]


def assert_answered(url: str, prompts: Sequence[str], meanwhile: Callable[[], object] = lambda: None) -> None:
    """Expect the whole answer of each prompt. `meanwhile` is called once answers have begun."""
    begun = threading.Event()
    with HeadraceClient(url) as client, ThreadPoolExecutor(len(prompts)) as pool:
        bodies = [{"model": "scripted", "prompt": prompt, "max_tokens": TOKENS} for prompt in prompts]
        following = [pool.submit(follow, url, client.submit(body)["id"], begun) for body in bodies]
        assert begun.wait(LIMIT_S)
        meanwhile()
        for prompt, answer in zip(prompts, following, strict=True):
            assert answer.result(LIMIT_S) == scripted_tokens(prompt, TOKENS), prompt


def test_streams_of_a_hung_engine_continue_on_another_worker(scripted_up: Launched) -> None:
    assert_answered(scripted_up.url, ["[hang 50] [pace 2]", *STREAMS])
    scripted_up.await_line(r"worker-\d died \(exit status 86, its engine hung\), restart in ")
    assert not any("does not respond" in line for line in scripted_up.lines)


def test_a_suspended_worker_is_killed_and_replaced(scripted_up: Launched) -> None:
    """Given a worker that is suspended, which looks like one that never releases the interpreter's lock."""

    def suspend() -> None:
        worker = scripted_up.child("worker")
        worker.send_signal(signal.SIGSTOP)
        scripted_up.await_line(r"worker-\d does not respond, and is killed")
        worker.wait(LIMIT_S)

    assert_answered(scripted_up.url, STREAMS, suspend)
