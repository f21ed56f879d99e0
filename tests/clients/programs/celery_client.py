"""Celery: the task `headrace.generate`, alone and in a group."""

import os

from celery import Celery, signature
from features import LIMIT_S, MODEL, feature, main

app = Celery("mine", broker=os.environ["HEADRACE_REDIS"], backend=os.environ["HEADRACE_REDIS"])
prefix = {"global_keyprefix": "hr:celery:"}
app.conf.update(broker_transport_options=prefix, result_backend_transport_options=prefix)


def body(**fields):
    return {"model": MODEL, "messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 8, **fields}


@feature("a task")
def task():
    answer = app.send_task("headrace.generate", (body(),), queue="headrace").get(LIMIT_S)
    assert answer["choices"][0]["message"]["content"]


@feature("a group of tasks")
def group():
    import celery

    calls = [signature("headrace.generate", (body(seed=seed),), queue="headrace", app=app) for seed in range(3)]
    answers = celery.group(calls, app=app).apply_async().get(LIMIT_S)
    assert len(answers) == 3


@feature("typed errors")
def errors():
    try:
        app.send_task("headrace.generate", (body(temperature=-1),), queue="headrace").get(LIMIT_S)
    except Exception as error:
        assert type(error).__name__ == "InvalidRequest"
        return
    raise AssertionError("no InvalidRequest")


main()
