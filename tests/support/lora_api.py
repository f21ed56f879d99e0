"""Calls of the API that load, choose and unload LoRA adapters of a tiny model."""

from __future__ import annotations

from typing import Any

import httpx

from shared.protocol import SamplingParams
from tests.support.engine_driver import drain
from workers.engine.engine import Engine
from workers.engine.interface import EngineRequest

TINY = "tiny"
PROMPT = "a river runs to the mill"
GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


async def put(http: httpx.AsyncClient, name: str, path: str | None = None, **fields: Any) -> httpx.Response:
    return await http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path or name, **fields})


async def drop(http: httpx.AsyncClient, name: str) -> httpx.Response:
    return await http.post("/v1/unload_lora_adapter", json={"lora_name": name})


async def complete(http: httpx.AsyncClient, model: str) -> dict[str, Any]:
    body = {"model": model, "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "return_token_ids": True}
    response = await http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def expected(alone: Engine, name: str | None) -> list[int]:
    """Return the greedy answer of an engine that computes nothing else."""
    assert alone.adapters is not None
    weights = None if name is None else alone.adapters.load(name)
    alone.add(EngineRequest("1", tuple(alone.tokenizer.encode(PROMPT)), GREEDY, adapter=weights))
    return drain(alone).ids("1")


def ids_of(found: dict[str, Any]) -> list[int]:
    ids: list[int] = found["choices"][0]["token_ids"]
    return ids


async def models(http: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    return {each["id"]: each for each in (await http.get("/v1/models")).json()["data"]}
