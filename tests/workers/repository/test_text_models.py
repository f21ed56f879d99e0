"""Models with the backend "headrace": each has a runtime of its own, beside models that take tensors."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from transformers import LlamaConfig

from shared.errors import ConfigError, ModelUnavailable
from shared.protocol import Request
from shared.repository.spec import ModelSpec
from shared.settings import Settings
from tests.support.encoder_checkpoints import save_encoder
from tests.support.fakes import answer, end_of, make_request, submit
from tests.support.gguf_files import SHAPE, random_model, write_gguf
from tests.support.model_repository import HostHarness, output_of, write_config, write_model
from tests.support.waiting import LIMIT_S
from tests.support.worker_harness import answer_tokens, expected_tokens, wait_for_tokens
from workers.repository.serving.model_settings import model_settings

CHAT = """
backend: "headrace"
parameters { key: "model" value { string_value: "scripted" } }
parameters { key: "max_num_seqs" value { string_value: "2" } }
"""
REQUESTS = 60


def chat(name: str = "chat") -> Request:
    return msgspec.structs.replace(make_request("hello"), model=name)


async def test_one_process_serves_texts_and_tensors(hosts: HostHarness) -> None:
    write_config(hosts.root, "chat", CHAT)
    write_model(hosts.root, "double", 2)
    async with hosts.host(model_memory="8GiB"):
        request = chat()
        await submit(hosts.backend, request)
        events = await answer(hosts.backend, request.id)
        assert answer_tokens(events) == expected_tokens(request)
        assert await hosts.ask("double", 4) == 8
        worker = await hosts.until_worker("chat")
        assert (worker.task, worker.max_num_seqs) == ("generate", 2)
        status = await hosts.until("chat", v1="READY")
        assert status.task == "generate"


async def test_a_changed_model_is_replaced_without_a_failure(hosts: HostHarness) -> None:
    """Given requests that go on, a second worker takes them over before the first one drains."""
    write_config(hosts.root, "chat", CHAT)
    ends: list[tuple[str, str | None]] = []

    async def call() -> None:
        while len(ends) < REQUESTS:
            request = chat()
            await submit(hosts.backend, request)
            ends.append(end_of(await answer(hosts.backend, request.id)))

    async with hosts.host(model_memory="8GiB", model_control="poll"):
        first = await hosts.until_worker("chat")
        callers = [asyncio.create_task(call()) for _ in range(4)]
        write_config(hosts.root, "chat", CHAT.replace('"2"', '"3"'))
        while (await hosts.until_worker("chat")).id == first.id or len(ends) < REQUESTS:
            await asyncio.sleep(0.01)
        await asyncio.gather(*callers)
    assert set(ends) == {("completed", None)}


async def test_a_process_that_must_leave_hands_its_answers_over(hosts: HostHarness) -> None:
    """Given an answer that would take long, and a grace time that allows it, another process continues it."""
    write_config(hosts.root, "chat", CHAT)
    request = msgspec.structs.replace(make_request("[pace 20] hello", max_tokens=40), model="chat")
    options = {"model_memory": "8GiB", "grace": 3600}
    async with hosts.host(**options) as leaving:
        await submit(hosts.backend, request)
        await wait_for_tokens(hosts.backend, request, 2)
        leaving.drain(0)
    assert (await hosts.backend.transport.depth("chat")).held == 1  # it has not ended
    async with hosts.host(**options):
        assert answer_tokens(await answer(hosts.backend, request.id)) == expected_tokens(request)


async def test_a_model_that_is_no_model_says_so(hosts: HostHarness) -> None:
    write_config(hosts.root, "chat", CHAT.replace("scripted", f"{hosts.root}/chat/gone"))
    write_model(hosts.root, "double", 2)
    async with hosts.host(model_memory="8GiB"):
        request = chat()
        await submit(hosts.backend, request)
        with pytest.raises(ModelUnavailable, match="model must be a folder") as raised:
            output_of(await answer(hosts.backend, request.id))
        assert raised.value.message.endswith(", got chat/gone")
        assert await hosts.ask("double", 4) == 8


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("redis_url", "redis://elsewhere", "redis_url is not a setting that a model can change"),
        ("max_num_seqs", "many", "max_num_seqs: Input should be a valid integer"),
    ],
)
def test_a_setting_that_a_model_cannot_have_is_named(
    settings: Settings, setting: str, value: str, words: str
) -> None:
    spec = ModelSpec(name="chat", backend="headrace", settings={"model": "scripted", setting: value})
    with pytest.raises(ConfigError, match=words):
        model_settings(settings, spec, settings.data_dir)


async def test_a_changed_model_takes_the_memory_of_the_old_one(hosts: HostHarness) -> None:
    config = CHAT + 'parameters { key: "kv_cache_gib" value { string_value: "1" } }\n'
    write_config(hosts.root, "chat", config)
    async with hosts.host(model_memory="1536MiB", model_control="poll"):
        first = await hosts.until_worker("chat")
        write_config(hosts.root, "chat", config.replace('"2"', '"3"'))
        async with asyncio.timeout(LIMIT_S):
            while (second := await hosts.until_worker("chat")).id == first.id:
                await asyncio.sleep(0.01)
        assert second.max_num_seqs == 3


async def test_an_encoder_needs_no_memory_for_a_cache(hosts: HostHarness) -> None:
    save_encoder(hosts.root / "encoder", "BertModel")
    async with hosts.host(model_memory="100MiB"):
        status = await hosts.until("encoder", v1="READY")
        assert status.task == "embed"


def test_a_description_may_name_a_gguf_file(settings: Settings) -> None:
    spec = ModelSpec(name="chat", backend="headrace", default_model_filename="tiny.Q8_0.gguf")
    assert model_settings(settings, spec, Path("/models/chat/1")).model == "/models/chat/1/tiny.Q8_0.gguf"


@pytest.mark.slow
async def test_a_gguf_file_of_the_repository_is_served(hosts: HostHarness) -> None:
    folder = hosts.root / "chat" / "1"
    folder.mkdir(parents=True)
    write_gguf(folder / "model.gguf", random_model(LlamaConfig(**SHAPE)), "llama")
    async with hosts.host(model_memory="8GiB", kv_cache_gib=0.01, cache_dir=hosts.root.parent / "cache"):
        request = chat()
        await submit(hosts.backend, request)
        assert end_of(await answer(hosts.backend, request.id)) == ("completed", None)
        assert (await hosts.until_worker("chat")).task == "generate"
