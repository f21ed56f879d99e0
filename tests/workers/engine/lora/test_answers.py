"""Answers with adapters: equal to merged weights, and the same bits in any batch, chunk, pool and worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from shared.protocol import SamplingParams
from tests.support.adapters import ATTENTION, DENSE_MLP, edit_tensors, merged, save_adapter
from tests.support.checkpoints import hf_agrees, hf_model, random_prompts
from tests.support.engine_driver import GREEDY, drain, load
from workers.engine.engine import Engine
from workers.engine.interface import EngineRequest
from workers.engine.kernels.cpp_layers import CppLayers
from workers.engine.lora.weights import AdapterWeights
from workers.engine.scheduling.scheduled_batch import ScheduledBatch

NAMES = (None, "wide", "narrow")
SAMPLED = SamplingParams(temperature=1.0, seed=5, max_tokens=12, ignore_eos=True)
PROMPTS = random_prompts(7)
Rows = dict[tuple[str, int], Tensor]


def opened(checkpoint: Path, folder: Path, **settings: Any) -> Engine:
    return load(checkpoint, lora_dir=folder, **settings)


def weights_of(engine: Engine, name: str | None) -> AdapterWeights | None:
    assert engine.adapters is not None
    return None if name is None else engine.adapters.load(name)


def request(
    number: int, prompt: list[int], adapter: AdapterWeights | None, params: SamplingParams = SAMPLED
) -> EngineRequest:
    return EngineRequest(str(number), tuple(prompt), params, adapter=adapter)


def rows_of(
    engine: Engine, requests: list[EngineRequest], monkeypatch: pytest.MonkeyPatch
) -> tuple[Rows, dict[str, list[int]]]:
    """Return the logits that the sampler got, by request and length, and the answers."""
    rows: Rows = {}
    compute = engine._runner.run

    def recording(batch: ScheduledBatch, interrupted: object) -> Tensor:
        found = compute(batch)
        for item, row in zip([item for item in batch.items if item.samples], found, strict=True):
            key = (item.sequence.job_id, item.sequence.num_tokens)
            assert key not in rows or torch.equal(rows[key], row)
            rows[key] = row.clone()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(engine._runner, "run", recording)
        for each in requests:
            engine.add(each)
        answers = drain(engine)
    return rows, {each.id: answers.ids(each.id) for each in requests}


def mixed(engine: Engine, count: int) -> list[EngineRequest]:
    """Return requests that take turns with the base model and its adapters."""
    loaded = [weights_of(engine, name) for name in NAMES]
    return [request(i, prompt, loaded[i % len(loaded)]) for i, prompt in enumerate(PROMPTS[:count])]


def check_invariance(
    checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *, pool: int, **settings: Any
) -> None:
    """Compare the logits of 7 requests with those of each alone, in chunks, and after preemption."""
    engine = opened(checkpoint, folder, block_size=4, **settings)
    requests = mixed(engine, 7)
    together, answers = rows_of(engine, requests, monkeypatch)
    assert len(together) == 7 * SAMPLED.max_tokens
    single = opened(checkpoint, folder, block_size=4, max_num_batched_tokens=1, **settings)
    for alone in requests[:3]:
        found, _ = rows_of(single, [alone], monkeypatch)
        assert all(torch.equal(row, together[key]) for key, row in found.items())
    for budget, blocks in ((5, 256), (16, pool)):
        small = opened(
            checkpoint, folder, block_size=4, max_num_batched_tokens=budget, num_kv_blocks=blocks, **settings
        )
        found, again = rows_of(small, mixed(small, 7), monkeypatch)
        assert all(torch.equal(row, together[key]) for key, row in found.items())
        assert all(answers[name] == ids for name, ids in again.items())
        assert (small.stats().preemptions > 0) == (blocks == pool)


def test_rows_have_the_same_bits_in_any_batch(llama: Path, adapters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_invariance(llama, adapters, monkeypatch, pool=20, quantization="int8")


@pytest.mark.slow
def test_rows_have_the_same_bits_with_integers_of_4_bits(
    llama: Path, adapters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_invariance(llama, adapters, monkeypatch, pool=20, quantization="int4")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3", "gpt-oss"])
def test_rows_of_other_families_have_the_same_bits(
    name: str, checkpoints: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mixtures of experts have adapters of attention."""
    targets = ATTENTION + (DENSE_MLP if name == "gemma3" else ())
    save_adapter(tmp_path / "wide", checkpoints(name), targets)
    save_adapter(tmp_path / "narrow", checkpoints(name), targets[:1], rank=2, seed=9)
    check_invariance(checkpoints(name), tmp_path, monkeypatch, pool=20)


def test_neighbours_with_adapters_leave_the_base_model_as_it_is(
    llama: Path, adapters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their rows have the bits of an engine without adapters. Steps without an adapter compute layers together."""
    fused = list[int]()
    compute = CppLayers.__call__

    def counted(self: CppLayers, residual: Tensor, *args: Any) -> Tensor | None:
        fused.append(len(residual))
        return compute(self, residual, *args)

    monkeypatch.setattr(CppLayers, "__call__", counted)
    engine = opened(llama, adapters)
    found, _ = rows_of(engine, mixed(engine, 7), monkeypatch)
    assert not fused
    base = [request(i, p, None) for i, p in enumerate(PROMPTS)]
    beside, _ = rows_of(engine, base, monkeypatch)
    assert fused
    plain, _ = rows_of(load(llama), base, monkeypatch)
    assert all(torch.equal(plain[key], row) for key, row in beside.items())
    assert all(torch.equal(plain[key], row) for key, row in found.items() if int(key[0]) % 3 == 0)


def agrees_with_merged(checkpoint: Path, folder: Path, names: tuple[str, ...]) -> None:
    engine = opened(checkpoint, folder)
    prompts = PROMPTS[:4]
    loaded = {name: weights_of(engine, name) for name in names}
    for name, adapter in loaded.items():
        for i, prompt in enumerate(prompts):
            engine.add(EngineRequest(f"{name} {i}", tuple(prompt), GREEDY, adapter=adapter))
    answers = drain(engine)
    base = hf_model(checkpoint)
    for name in names:
        model = merged(checkpoint, folder / name)
        found = [answers.ids(f"{name} {i}") for i in range(len(prompts))]
        assert all(hf_agrees(model, prompt, ids) for prompt, ids in zip(prompts, found, strict=True))
        assert not all(hf_agrees(base, prompt, ids) for prompt, ids in zip(prompts, found, strict=True))


def test_greedy_answers_equal_those_of_merged_weights(llama: Path, adapters: Path) -> None:
    agrees_with_merged(llama, adapters, ("wide", "narrow"))


def test_patterns_of_ranks_and_scales_apply(llama: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", llama, ("q_proj", "down_proj"), rank=2, alpha_pattern={"down_proj": 1.5})
    for layer in range(3):
        name = f"layers__{layer}__self_attn__q_proj__lora_"
        edit_tensors(
            tmp_path / "a", **{f"{name}A__weight": torch.randn(5, 48), f"{name}B__weight": torch.randn(48, 5)}
        )
    config = {"rank_pattern": {r"model.layers.\d.self_attn.q_proj": 5}}
    save = tmp_path / "a" / "adapter_config.json"
    save.write_bytes(msgspec.json.encode(msgspec.json.decode(save.read_bytes()) | config))
    agrees_with_merged(llama, tmp_path, ("a",))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-biased", "gemma2", "qwen3-moe", "gpt-oss"])
def test_answers_of_other_families_equal_those_of_merged_weights(
    name: str, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    targets = ATTENTION if name in ("qwen3-moe", "gpt-oss") else ATTENTION + DENSE_MLP
    save_adapter(tmp_path / "a", checkpoints(name), targets)
    agrees_with_merged(checkpoints(name), tmp_path, ("a",))


def test_another_worker_continues_with_the_same_bits(
    llama: Path, adapters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = opened(llama, adapters), opened(llama, adapters, block_size=4)
    requests = mixed(first, 3)
    rows, answers = rows_of(first, requests, monkeypatch)
    for each, again in zip(requests, mixed(second, 3), strict=True):
        done = 5
        resumed = EngineRequest(
            each.id, each.prompt, SAMPLED, resumed=(tuple(answers[each.id][:done]),), adapter=again.adapter
        )
        found, rest = rows_of(second, [resumed], monkeypatch)
        assert rest[each.id] == answers[each.id][done:]
        assert all(torch.equal(row, rows[key]) for key, row in found.items())


def test_prefixes_of_another_adapter_are_not_found(llama: Path, adapters: Path) -> None:
    engine = opened(llama, adapters, block_size=4)
    prompt, hits = PROMPTS[0] * 3, []
    for i, name in enumerate((None, "wide", "narrow", "wide", None)):
        before = engine.stats().prefix_hits
        engine.add(request(i, prompt, weights_of(engine, name)))
        drain(engine)
        hits.append(engine.stats().prefix_hits > before)
    assert hits == [False, False, False, True, True]
