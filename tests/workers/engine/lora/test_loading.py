"""Folders of adapters that are refused, each with the file and the reason, and those that may be loaded."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shared.errors import ConfigError, InvalidRequest
from shared.protocol import SamplingParams
from tests.support.adapters import edit_adapter, edit_tensors, save_adapter
from tests.support.engine_driver import load
from workers.engine.engine import Engine
from workers.engine.interface import EngineRequest
from workers.engine.lora.adapter_folder import AdapterChanged, AdapterMissing
from workers.engine.lora.interface import AdapterReader

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Break = Callable[[Path], object]
Q = "layers__0__self_attn__q_proj__lora_"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module")
def reader(llama: Path, root: Path) -> AdapterReader:
    adapters = load(llama, lora_dir=root, max_lora_rank=16).adapters
    assert adapters is not None
    return adapters


@pytest.fixture
def good(llama: Path, root: Path) -> Path:
    shutil.rmtree(root)
    return save_adapter(root / "a", llama, ("q_proj", "v_proj"), rank=4)


def truncate(folder: Path, missing: int) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-missing])


def make_pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({}))


def link_out(folder: Path, name: str) -> None:
    """Move a file out of lora_dir, and leave a link to it."""
    outside = folder.parent.parent / f"outside-{name}"
    shutil.move(folder / name, outside)
    (folder / name).symlink_to(outside)


def edit(**changes: object) -> Break:
    return lambda folder: edit_adapter(folder, **changes)


def tensors(**changes: torch.Tensor | None) -> Break:
    return lambda folder: edit_tensors(folder, **changes)


def config_text(text: str) -> Break:
    return lambda folder: (folder / CONFIG).write_text(text)


BROKEN: dict[str, tuple[Break, str]] = {
    "no config": (lambda folder: (folder / CONFIG).unlink(), "has no adapter_config.json"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "has no adapter_model.safetensors"),
    "a pickle": (make_pickle, "adapter_model.bin is a pickle"),
    "config is no JSON": (config_text("{"), "adapter_config.json is not JSON"),
    "config is nested deeply": (config_text("[" * 100_000), "adapter_config.json is not JSON"),
    "config is no object": (config_text("[]"), "must hold a JSON object"),
    "config is long": (config_text(" " * 2**20 + "{}"), "is longer than"),
    "config is not a file": (
        lambda folder: ((folder / CONFIG).unlink(), os.mkfifo(folder / CONFIG)),
        "has no adapter_config.json",
    ),
    "another kind": (edit(peft_type="IA3"), "peft_type must be LORA"),
    "bias": (edit(bias="all"), 'bias must be "none"'),
    "DoRA": (edit(use_dora=True), "use_dora must be false"),
    "modules_to_save": (edit(modules_to_save=["lm_head"]), "modules_to_save must be"),
    "expert parameters": (edit(target_parameters=["mlp.experts.gate_up_proj"]), "target_parameters must be"),
    "PiSSA": (edit(init_lora_weights="pissa_niter_4"), "changes the base model"),
    "rank above the bound": (edit(r=17), "r must be between 1 and max_lora_rank 16, got 17"),
    "rank of a pattern": (edit(rank_pattern={"q_proj": 99}), r"rank_pattern\[q_proj\] must be between"),
    "rank is no number": (edit(r=True), "r must be between 1 and"),
    "alpha is not finite": (edit(lora_alpha=float("inf")), "lora_alpha must be a number"),
    "alpha is too large": (edit(lora_alpha=10**400), "lora_alpha must be a number"),
    "alpha of a pattern is too large": (edit(alpha_pattern={"x": 10**400}), r"alpha_pattern\[x\] must be a number"),
    "a pattern that takes long": (edit(alpha_pattern={"(.+)+x": 1}), "its keys must be names of modules"),
    "too many wildcards": (edit(alpha_pattern={".*a.*b.*": 1}), "its keys must be names of modules"),
    "no targets": (edit(target_modules=[]), "target_modules must be a list"),
    "a target without matrices": (
        edit(target_modules=["q_proj", "o_proj"]),
        "no matrices of model.layers.0.self_attn",
    ),
    "weights cut": (lambda folder: truncate(folder, 5), "is truncated"),
    "weights cut in the header": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:20]),
        "is truncated within its header",
    ),
    "more bytes than tensors": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + b"x"),
        "and its header describes",
    ),
    "huge header": (lambda folder: (folder / WEIGHTS).write_bytes(b"\xff" * 16), "the length of its header"),
    "a pointer": (
        lambda folder: (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n"),
        "pointer of Git LFS",
    ),
    "NaN": (tensors(**{f"{Q}A__weight": torch.full((4, 48), float("nan"))}), "values that are not finite"),
    "infinity": (tensors(**{f"{Q}B__weight": torch.full((48, 4), float("inf"))}), "values that are not finite"),
    "scaled to infinity": (edit(lora_alpha=1e300), "values that are not finite"),
    "wrong rank": (tensors(**{f"{Q}A__weight": torch.zeros(3, 48)}), r"has shape \(3, 48\)"),
    "wrong size": (tensors(**{f"{Q}B__weight": torch.zeros(40, 4)}), r"has shape \(40, 4\)"),
    "integers": (tensors(**{f"{Q}A__weight": torch.zeros(4, 48, dtype=torch.int32)}), "has type I32"),
    "no B": (tensors(**{f"{Q}B__weight": None}), "has no lora_B of model.layers.0.self_attn.q_proj"),
    "a layer too many": (
        tensors(base_model__model__model__layers__9__self_attn__q_proj__lora_A__weight=torch.zeros(4, 48)),
        "the model has no layer model.layers.9",
    ),
    "the head": (
        tensors(base_model__model__lm_head__lora_A__weight=torch.zeros(4, 48)),
        "adapters of lm_head are not supported",
    ),
    "an expert": (
        tensors(base_model__model__model__layers__0__mlp__experts__1__up_proj__lora_A__weight=torch.zeros(4, 48)),
        "is in an expert of a mixture",
    ),
    "a vector of DoRA": (
        tensors(base_model__model__model__layers__0__mlp__up_proj__lora_magnitude_vector=torch.zeros(4)),
        "is no matrix of a LoRA adapter",
    ),
    "a link to another file": (lambda folder: link_out(folder, WEIGHTS), "is a link out of lora_dir"),
    "a link to another config": (lambda folder: link_out(folder, CONFIG), "is a link out of lora_dir"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_refused_with_the_reason(name: str, good: Path, reader: AdapterReader) -> None:
    break_it, reason = BROKEN[name]
    assert reader.load("a").rank == 4
    break_it(good)
    with pytest.raises(ConfigError, match=reason):
        reader.load("a")


def test_a_path_leads_into_the_folder_only(good: Path, root: Path, llama: Path, reader: AdapterReader) -> None:
    outside = root.parent / "elsewhere"
    save_adapter(outside, llama, ("q_proj",))
    (root / "link").symlink_to(outside)
    (root / "circle").symlink_to(root / "circle")
    for path in (str(outside), "../elsewhere", "a/../../elsewhere", "link", str(root), ".", "", "a\0", "/etc"):
        with pytest.raises(ConfigError, match=r"is not in lora_dir|must not have"):
            reader.load(path)
    for path in ("b", "a/b", "x" * 5000, "circle", f"a/{WEIGHTS}"):
        with pytest.raises(AdapterMissing, match="No adapter found"):
            reader.load(path)
    (root / "inner").symlink_to(good)
    assert reader.load(str(good)).digest == reader.load("inner").digest == reader.load("a").digest


def test_a_changed_file_is_another_adapter(good: Path, reader: AdapterReader) -> None:
    digest = reader.load("a").digest
    edit_adapter(good, lora_alpha=1)
    with pytest.raises(AdapterChanged):
        reader.load("a", digest)
    assert reader.load("a").digest != digest


def test_names_of_tensors_without_a_prefix_and_a_regular_expression(good: Path, reader: AdapterReader) -> None:
    down, up = torch.zeros(4, 48), torch.zeros(48, 4)
    name = "model.layers.1.self_attn.q_proj.lora_{}.default.weight"
    save_file({name.format("A"): down, name.format("B"): up.bfloat16()}, good / WEIGHTS)
    edit_adapter(good, target_modules=r"(.*)*\.q_proj")
    assert list(reader.load("a").products) == ["model.layers.1.self_attn.q_proj"]


def test_part_of_the_layers_may_be_adapted(good: Path, reader: AdapterReader) -> None:
    changes = {f"layers__{layer}__self_attn__{name}_proj__lora_{side}__weight": None
               for layer in (0, 1) for name in "qv" for side in "AB"}  # fmt: skip
    edit_tensors(good, **changes)
    with pytest.raises(ConfigError, match=r"no matrices of model\.layers\.0"):
        reader.load("a")
    edit_adapter(good, layers_to_transform=[2])
    assert len(reader.load("a").products) == 1


def test_an_engine_without_a_folder_computes_no_adapters(
    llama: Path, good: Path, reader: AdapterReader, tmp_path: Path
) -> None:
    engine: Engine = load(llama)
    assert engine.adapters is None
    with pytest.raises(InvalidRequest, match="computes no adapters"):
        engine.add(EngineRequest("1", (1,), SamplingParams(), adapter=reader.load("a")))
    with pytest.raises(ConfigError, match="lora_dir must be a folder"):
        load(llama, lora_dir=tmp_path / "missing")


def test_config_has_the_fields_that_peft_saves(good: Path, reader: AdapterReader) -> None:
    """Given all fields of PEFT 0.18 with their defaults."""
    absent = ("alora_invocation_tokens", "arrow_config", "auto_mapping", "corda_config", "eva_config")
    absent += ("exclude_modules", "layer_replication", "layers_pattern", "layers_to_transform", "megatron_config")
    absent += ("modules_to_save", "revision", "target_parameters", "trainable_token_indices")
    off = ("ensure_weight_tying", "fan_in_fan_out", "lora_bias", "use_dora", "use_qalora", "use_rslora")
    fields = {"alpha_pattern": {}, "loftq_config": {}, "rank_pattern": {}}
    fields |= {"base_model_name_or_path": "x", "bias": "none", "inference_mode": True, "init_lora_weights": True}
    fields |= {"lora_dropout": 0.05, "megatron_core": "megatron.core", "peft_version": "0.18.0"}
    fields |= {"qalora_group_size": 16, "task_type": "CAUSAL_LM"}
    fields |= {**dict.fromkeys(absent), **dict.fromkeys(off, False)}
    edit_adapter(good, **fields)
    assert reader.load("a").rank == json.loads((good / CONFIG).read_text())["r"]
