"""Chaos cases of the real engine: a pool that is too small, and a worker that dies while it samples."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import pytest_asyncio

from shared.redis.embedded import HOST
from shared.runtime.sockets import free_ports
from tests.chaos.scale import Scale
from tests.support.cluster import Cluster, running
from tests.support.node import Node
from tests.support.stream_client import Answer, Client, until
from tests.support.tested_runtime import runtime_settings

pytestmark = pytest.mark.slow

BLOCKS, BLOCK_SIZE = 8, 16
FLOAT_BYTES = 4
DRAFTED_PROMPT = list(b"the mill by the river, the mill by the ")
DRAFTED_TOKENS, DRAFTED_STREAMS = 400, 4


@pytest.mark.case("small-pool", "KV pool of 8 blocks, 32 requests")
async def test_a_pool_too_small_for_the_batch_serves_all(figures: dict[str, Any], tmp_path: Path) -> None:
    """Given blocks for one or two sequences, if 32 arrive at once, each answer is the same as alone."""
    from tests.support.checkpoints import CONFIGS, save_checkpoint  # imports torch only if this case runs

    config = CONFIGS["llama"]
    block = 2 * config.num_hidden_layers * config.num_key_value_heads * BLOCK_SIZE * config.head_dim * FLOAT_BYTES
    settings = {
        "model": save_checkpoint(tmp_path / "tiny", config),
        "served_model_name": "tiny",
        "kv_cache_gib": BLOCKS * block / 2**30,
        "block_size": BLOCK_SIZE,
        "max_model_len": BLOCKS * BLOCK_SIZE,
        "max_num_seqs": 32,
    }
    async with running(tmp_path, apis=1, workers=1, **settings) as cluster:
        client = Client(cluster.urls, "tiny")
        bodies = [(f"request {number}", 16 + 2 * number) for number in range(32)]
        fields = {"temperature": 1.0, "seed": 7, "ignore_eos": True}
        together = await asyncio.gather(*(_answer(client, *body, **fields) for body in bodies))
        alone = [await _answer(client, *bodies[number], **fields) for number in (0, 15, 31)]
    figures |= {"requests": len(together), "tokens": sum(answer.seq for answer in together)}
    assert [answer.seq for answer in together] == [tokens for _, tokens in bodies]
    assert [answer.texts for answer in alone] == [together[number].texts for number in (0, 15, 31)]


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def real(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Cluster whose only worker runs SmolLM2."""
    settings = {"model": smollm2, "served_model_name": "smollm2", "max_attempts": 100, **runtime_settings()}
    async with running(tmp_path_factory.mktemp("real"), apis=1, workers=1, **settings) as cluster:
        yield cluster


@pytest.mark.case("model-kill", "SmolLM2: worker kill -9 mid-stream, greedy, seeded, n=2, stop, penalties")
async def test_answers_of_a_real_model_outlive_their_worker(
    real: Cluster, scale: Scale, figures: dict[str, Any]
) -> None:
    """Given running answers, if their worker dies, the next continues with the text of an undisturbed run."""
    tokens, kills = scale(16, 160), scale(1, 20)
    sampled = {"temperature": 0.9, "seed": 11, "n": 2, "stop": ["\n\n\n"], "repetition_penalty": 1.2}
    sampled |= {"presence_penalty": 0.4, "frequency_penalty": 0.3, "ignore_eos": True}
    cases: list[tuple[str, dict[str, Any]]] = [("Once upon a time", {"temperature": 0.0}), ("The sea is", sampled)]
    client, [worker] = Client(real.urls, "smollm2"), real.workers
    undisturbed = [await _answer(client, prompt, tokens, **fields) for prompt, fields in cases]
    for _ in range(kills):
        answers = await _through_a_death(client, worker, cases, tokens, reached=4)
        assert [answer.texts for answer in answers] == [answer.texts for answer in undisturbed]
    figures |= {"kills": kills, "tokens of the answers": sum(answer.seq for answer in undisturbed)}


ROW = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 4, "maxLength": 16},
        "day": {"type": "string", "format": "date"},
        "size": {"type": "integer", "minimum": 1, "maximum": 999},
        "kind": {"enum": ["river", "mill", None]},
    },
    "required": ["name", "day", "size", "kind"],
    "additionalProperties": False,
}


@pytest.mark.case("model-json", "SmolLM2: worker kill -9 mid-answer, JSON by a schema, greedy and seeded, n=2")
async def test_json_outlives_its_worker(real: Cluster, scale: Scale, figures: dict[str, Any]) -> None:
    """Given running JSON answers, if their worker dies, the next continues with the JSON of an undisturbed run."""
    kills, count = scale(1, 20), scale(1, 2)
    rows = {"type": "array", "minItems": count, "maxItems": count, "items": ROW}
    fields = {"structured_outputs": {"json": rows}}
    sampled = {**fields, "temperature": 1.0, "seed": 3, "n": 2}
    cases = [("Rivers and mills:", {**fields, "temperature": 0.0}), ("List:", sampled)]
    client, [worker] = Client(real.urls, "smollm2"), real.workers
    undisturbed = [await _answer(client, prompt, 400, **fields) for prompt, fields in cases]
    for text in (text for answer in undisturbed for text in answer.texts):
        jsonschema.validate(json.loads(text), rows, format_checker=jsonschema.FormatChecker())
    for kill in range(kills):
        answers = await _through_a_death(client, worker, cases, 400, reached=10 + kill % 40)
        assert [answer.texts for answer in answers] == [answer.texts for answer in undisturbed]
    figures |= {"kills": kills, "tokens of the answers": sum(answer.seq for answer in undisturbed)}


@pytest.mark.case("draft-kill", "worker kill -9 while it may draft, greedy and seeded, n=2")
async def test_drafted_answers_outlive_their_worker(figures: dict[str, Any], tmp_path: Path) -> None:
    """Given answers whose tokens may be drafted, another worker continues with the text of one token per step."""
    from tests.support.checkpoints import CONFIGS, save_checkpoint  # imports torch only if this case runs

    model = save_checkpoint(tmp_path / "tiny", CONFIGS["llama"])
    cases = [{"temperature": 0.0}, {"temperature": 0.3, "seed": 5, "n": 2}]
    plain = await asyncio.to_thread(_plain_texts, model, cases)
    settings = {"model": model, "served_model_name": "tiny", "kv_cache_gib": 0.05}
    async with running(tmp_path / "cluster", apis=1, workers=0, **settings) as cluster:
        client, urls, workers = Client(cluster.urls, "tiny"), [], []
        for port in free_ports(HOST, 2):
            urls.append(f"http://{HOST}:{port}/metrics")
            workers.append(
                cluster.add("worker", {**cluster.apis[0].environment, "HEADRACE_METRICS_PORT": str(port)})
            )
        await workers[0].start()
        bodies = [(DRAFTED_PROMPT, {**case, "ignore_eos": True}) for case in cases for _ in range(DRAFTED_STREAMS)]
        answers = [await client.submit(prompt, DRAFTED_TOKENS, **fields) for prompt, fields in bodies]
        following = [asyncio.create_task(client.follow(answer)) for answer in answers]
        await until(lambda: all(answer.seq >= 1 for answer in answers), "the first token of each answer")
        before = await _accepted_drafts(urls[0])  # none while the worker measures that drafts do not pay
        workers[0].kill()
        reached = [answer.seq for answer in answers if answer.end is None]
        assert reached, "an answer is unfinished"
        await workers[1].start()
        await asyncio.gather(*following)
        after = await _accepted_drafts(urls[1])
    figures |= {"unfinished": len(reached), "accepted before": before, "after": after}
    assert [answer.texts for answer in answers] == [texts for texts in plain for _ in range(DRAFTED_STREAMS)]


def _plain_texts(model: Path, cases: list[dict[str, Any]]) -> list[list[str]]:
    """Return the texts of each case's choices, computed with one token of each choice per step."""
    from shared.protocol import SamplingParams
    from tests.support.engine_driver import drain, load
    from workers.engine.interface import EngineRequest

    engine = load(model, speculation="off")
    for number, case in enumerate(cases):
        params = SamplingParams(**case, max_tokens=DRAFTED_TOKENS, ignore_eos=True)
        engine.add(EngineRequest(str(number), tuple(DRAFTED_PROMPT), params))
    found = drain(engine)
    return [
        [found.text(str(number), choice) for choice in range(case.get("n", 1))] for number, case in enumerate(cases)
    ]


async def _accepted_drafts(url: str) -> int:
    """Return how many drafted tokens of a worker became part of answers."""
    async with httpx.AsyncClient() as http:
        text = (await http.get(url)).text
    return int(
        sum(
            float(count)
            for count in re.findall(r"^headrace_worker_accepted_draft_tokens_total.* (\S+)$", text, re.M)
        )
    )


async def _through_a_death(
    client: Client, worker: Node, cases: Iterable[tuple[str, dict[str, Any]]], tokens: int, *, reached: int
) -> list[Answer]:
    """Kill the worker when all answers have `reached` tokens and none has ended; return the complete answers."""
    answers = [await client.submit(prompt, tokens, **fields) for prompt, fields in cases]
    following = [asyncio.create_task(client.follow(answer)) for answer in answers]
    await until(lambda: min(answer.seq for answer in answers) >= reached, "both answers run")
    assert all(answer.end is None for answer in answers)
    worker.kill()
    await worker.start()
    await asyncio.gather(*following)
    return answers


async def _answer(client: Client, prompt: str, tokens: int, **fields: Any) -> Answer:
    answer = await client.follow(await client.submit(prompt, tokens, **fields))
    assert answer.end == "done", answer.data
    return answer
