"""Contract of runtimes. A test class of each runtime inherits it, with a fixture `runtime` that drives the runtime.

A runtime in an environment of its own runs these tests there.
"""

from __future__ import annotations

from itertools import pairwise

import msgspec

from shared.errors import DeadlineExceeded
from shared.protocol import FinishReason, Request, SamplingParams, Token, new_job_id
from tests.support.runtime_driver import RuntimeDriver

MANY_TOKENS = 200
SLOWLY = "[pace 20] "  # a directive of the engines without weights, for answers that must not end too soon


def ask(prompt: str, tokens: int = 8, **params: object) -> Request:
    """Return a request for a greedy answer of `tokens` tokens, if the model does not end it sooner."""
    given = {"max_tokens": tokens, "temperature": 0.0, "seed": 7, **params}
    return Request(id=new_job_id(), model="m", prompt=prompt, params=SamplingParams(**given))


def again(request: Request) -> Request:
    return msgspec.structs.replace(request, id=new_job_id())


class RuntimeContract:
    """Tests of every runtime."""

    def test_an_answer_ends_with_its_length(self, runtime: RuntimeDriver) -> None:
        ended = runtime.answer(ask("once upon a time", ignore_eos=True))
        assert ended.error is None
        assert ended.finish_reasons() == {0: FinishReason.LENGTH}
        assert ended.text()
        assert ended.usage is None or ended.usage.completion_tokens == 8

    def test_choices_are_numbered_and_each_ends(self, runtime: RuntimeDriver) -> None:
        ended = runtime.answer(ask("three ways", n=3, ignore_eos=True))
        assert ended.error is None
        assert set(ended.finish_reasons()) == {0, 1, 2}
        assert all(ended.text(choice) for choice in range(3))

    def test_answers_do_not_depend_on_their_neighbours(self, runtime: RuntimeDriver) -> None:
        requests = [ask(f"number {i}", 4 + i, ignore_eos=True) for i in range(6)]
        alone = [runtime.answer(request).text() for request in requests]
        runs = [runtime.start(again(request)) for request in requests]
        assert [runtime.wait(run).text() for run in runs] == alone

    def test_an_aborted_run_gives_nothing_more(self, runtime: RuntimeDriver) -> None:
        run = runtime.start(ask(f"{SLOWLY}stop me", MANY_TOKENS, ignore_eos=True))
        runtime.wait(run, tokens=1)
        runtime.thread.abort(run)
        runtime.answer(ask("the next", ignore_eos=True))  # its command follows the abort
        tokens = len(runtime.wait(run, tokens=1).tokens)
        runtime.answer(ask("one more", ignore_eos=True))
        assert len(runtime.wait(run, tokens=1).tokens) == tokens
        runtime.await_idle()

    def test_an_abort_with_an_error_ends_the_run_with_it(self, runtime: RuntimeDriver) -> None:
        run = runtime.start(ask(f"{SLOWLY}too late", MANY_TOKENS, ignore_eos=True))
        runtime.thread.abort(run, DeadlineExceeded("too late"))
        assert isinstance(runtime.wait(run).error, DeadlineExceeded)

    def test_a_resumed_answer_has_no_gap_and_no_repeat(self, runtime: RuntimeDriver) -> None:
        request = ask("go on", 12, ignore_eos=True)
        whole = runtime.answer(request)
        for place in (1, 5, 11):
            logged = whole.tokens[:place]
            rest = runtime.answer(again(request), logged)
            assert rest.error is None
            assert rest.text() == whole.text()
            assert rest.finish_reasons() == whole.finish_reasons()
            assert rest.usage is None or rest.usage == whole.usage

    def test_only_unfinished_choices_of_a_resumed_answer_go_on(self, runtime: RuntimeDriver) -> None:
        request = ask("both", 6, n=2, ignore_eos=True)
        whole = runtime.answer(request)
        logged = [token for token in whole.tokens if token.choice == 0]
        begun = [token for token in whole.tokens if token.choice == 1][:2]
        rest = runtime.answer(again(request), [*logged, *begun])
        assert [token.choice for token in rest.tokens if token.choice == 0] == []
        assert [rest.text(choice) for choice in (0, 1)] == [whole.text(choice) for choice in (0, 1)]

    def test_an_answer_that_is_complete_in_the_log_just_ends(self, runtime: RuntimeDriver) -> None:
        logged = [Token(0, 5, "all", FinishReason.LENGTH)]
        ended = runtime.answer(ask("done", 1), logged)
        assert (ended.finished, ended.tokens, ended.error) == (True, [], None)

    def test_a_prompt_beyond_the_context_is_refused(self, runtime: RuntimeDriver) -> None:
        ended = runtime.answer(ask("x " * (runtime.engine.max_model_len + 1)))
        assert ended.error is not None
        assert ended.error.code == "context_length_exceeded"

    def test_stats_follow_what_runs(self, runtime: RuntimeDriver) -> None:
        runtime.await_idle()
        runtime.most_running = 0
        runtime.answer(ask(f"{SLOWLY}count me", 4, n=2, ignore_eos=True))
        assert runtime.most_running == 2
        runtime.await_idle()

    def test_urgent_and_batch_requests_all_end(self, runtime: RuntimeDriver) -> None:
        runs = [runtime.start(ask(f"all of {i}", 3, ignore_eos=True)) for i in range(20)]
        ended = [runtime.wait(run) for run in runs]
        assert [answer.error for answer in ended] == [None] * 20


class StopContract:
    """Tests of runtimes that end answers at stop strings."""

    def test_a_stop_string_ends_the_answer_before_it(self, runtime: RuntimeDriver) -> None:
        whole = runtime.answer(ask("until there", 12, ignore_eos=True))
        parts = [token.text for token in whole.tokens if token.text]
        stop = next(b for a, b in pairwise(parts) if b not in a)
        ended = runtime.answer(ask("until there", 12, stop=(stop,), ignore_eos=True))
        assert ended.error is None
        assert ended.text() == whole.text()[: whole.text().index(stop)]
        assert ended.finish_reasons() == {0: FinishReason.STOP}
