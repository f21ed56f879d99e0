"""Architectures without code in Headrace: transformers' code over the paged cache answers as its generate does."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BloomConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    MambaConfig,
    OlmoeConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    Starcoder2Config,
    T5Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

from shared.errors import ConfigError
from shared.protocol import PriorityClass, SamplingParams, Structured
from tests.support.checkpoints import SHAPE, byte_tokenizer, hf_greedy, hf_model, random_prompts, save_checkpoint
from tests.support.engine_driver import drain, load, run
from workers.engine.interface import ConstraintSpec, EngineRequest
from workers.engine.models.transformers import AttentionProbe

MAX_TOKENS = 12
GREEDY = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
SMALL = {**SHAPE, "num_hidden_layers": 2}
GPT2: dict[str, Any] = {"n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": 512, "tie_word_embeddings": True}
KINDS: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(**SMALL | GPT2),
    "gemma": GemmaConfig(**SMALL, head_dim=16),
    "starcoder2": Starcoder2Config(**SMALL, sliding_window=128),
    "phi": PhiConfig(**SMALL | {"num_key_value_heads": 6}, partial_rotary_factor=0.5),
    "neox": GPTNeoXConfig(**SMALL, rotary_pct=0.25),
    "opt": OPTConfig(**SMALL, ffn_dim=80, word_embed_proj_dim=48),
}
REFUSED: dict[str, tuple[PreTrainedConfig, str]] = {
    "alibi": (BloomConfig(**SMALL, n_head=6, n_layer=2), "cannot be replaced"),
    "experts": (OlmoeConfig(**SMALL), "mixture of experts"),
    "state": (MambaConfig(**SMALL), "attention"),
    "encoder": (T5Config(vocab_size=272, d_model=48, num_layers=1), "encoder"),
    "dynamic": (
        PhiConfig(**SMALL | {"num_key_value_heads": 6}, rope_parameters={"rope_type": "dynamic", "factor": 2.0}),
        "rope type is dynamic",
    ),
}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def checkpoint(name: str) -> Path:
        if name not in made:
            made[name] = save_checkpoint(tmp_path_factory.mktemp(name), KINDS[name])
        return made[name]

    return checkpoint


@pytest.mark.parametrize(
    "name",  # neox has the parts of phi
    [pytest.param(name, marks=pytest.mark.slow if name in ("starcoder2", "phi") else ()) for name in KINDS],
)
def test_greedy_answers_match_generate(name: str, kinds: Callable[[str], Path]) -> None:
    """In batches of 1, 2 and 7, with budgets of 1 and 16 tokens, and with preemptions."""
    folder = kinds(name)
    model = hf_model(folder)
    asked = random_prompts(7)
    expected = [hf_greedy(model, prompt, MAX_TOKENS) for prompt in asked]
    for budget, batches in ((1, (2,)), (16, (1, 7))):
        engine = load(folder, max_model_len=96, max_num_batched_tokens=budget)
        for batch in batches:
            assert run(engine, asked[:batch], GREEDY) == expected[:batch]
    scarce = load(folder, max_model_len=80, max_num_batched_tokens=16, num_kv_blocks=21, block_size=4)
    assert run(scarce, asked, GREEDY) == expected
    assert scarce.stats().preemptions > 0


def test_answers_follow_a_grammar(kinds: Callable[[str], Path]) -> None:
    """Two choices beside an unconstrained request, both from the start and resumed on another worker."""
    engine = load(kinds("gpt2"))
    assert engine.constraints is not None
    matcher = engine.constraints.start(ConstraintSpec(Structured(regex="[a-z]{3}-[0-9]{4}"))).result(60).matcher
    hot = SamplingParams(temperature=1.5, seed=4, max_tokens=MAX_TOKENS, n=2)
    engine.add(EngineRequest("r", (5, 6), hot, matcher=matcher))
    engine.add(EngineRequest("free", (5, 6), hot))
    answers = drain(engine)
    for choice in range(2):
        assert re.fullmatch("[a-z]{3}-[0-9]{4}", answers.text("r", choice))
    engine.add(
        EngineRequest("r", (5, 6), hot, tuple(tuple(answers.ids("r", c)[:4]) for c in range(2)), matcher=matcher)
    )
    rest = drain(engine)
    assert [rest.ids("r", c) for c in range(2)] == [answers.ids("r", c)[4:] for c in range(2)]


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_architecture_is_refused(name: str, tmp_path: Path) -> None:
    """Only config.json is read; no weights are loaded first."""
    config, message = REFUSED[name]
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, "T5ForConditionalGeneration")]
    config.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gpt2", {"quantization_config": {"quant_method": "awq"}}, "is quantized"),
        ("gpt2", {"vision_config": {"hidden_size": 8}}, "consists of several models"),
        ("gemma", {"layer_types": ["linear_attention", "full_attention"]}, "layers of linear_attention"),
        ("gpt2", {"attention_chunk_size": 64}, "chunked attention"),
        ("neox", {"max_position_embeddings": "many"}, "refuses its config.json"),
        ("neox", {"max_position_embeddings": 0}, "no valid max_position_embeddings"),
    ],
)
def test_unsupported_feature_in_config_is_refused(
    name: str, changes: dict[str, Any], message: str, kinds: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(kinds(name), tmp_path / "model"))
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(ConfigError, match=message):
        load(folder)


def test_probe_refuses_unsupported_attention() -> None:
    probe = AttentionProbe()
    probe.examine(torch.nn.Module(), {"sliding_window": 5})
    assert probe.windows == {5}
    with pytest.raises(ConfigError, match="5 heads cannot share 2 key-value heads"):
        probe.attend(0, torch.zeros(3, 5, 8), torch.zeros(3, 2, 8), torch.zeros(3, 2, 8))


def test_sequences_longer_than_a_sliding_window_are_refused(kinds: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="max_model_len to at most 128"):
        load(kinds("starcoder2"))


def test_missing_or_extra_weights_are_refused(kinds: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(kinds("gpt2"), tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("c_fc.weight"))
    for changed in ({k: v for k, v in weights.items() if k != name}, {**weights, "extra": torch.ones(2)}):
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ConfigError, match="does not fit"):
            load(folder)


def test_model_that_mixes_rows_is_refused(kinds: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Given code in which a row sees its neighbour outside of attention, loading fails."""
    mlp = GPT2MLP.forward
    monkeypatch.setattr(GPT2MLP, "forward", lambda self, x: mlp(self, x + x.roll(1, dims=1)))
    with pytest.raises(ConfigError, match="computes something else"):
        load(kinds("gpt2"))


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_row_has_the_same_bits_in_any_batch(quantization: str, kinds: Callable[[str], Path]) -> None:
    """Compared by log-probabilities: a prompt alone, in a batch of 7, and in chunks."""
    params = SamplingParams(temperature=0.0, max_tokens=6, logprobs=0)
    found = []
    for count, budget in ((1, 256), (7, 256), (7, 5)):
        engine = load(kinds("phi"), device="cpu", max_num_batched_tokens=budget, quantization=quantization)
        for index, prompt in enumerate(random_prompts(7)[:count]):
            engine.add(EngineRequest(str(index), tuple(prompt), params))
        found.append([token.logprobs for token in drain(engine).tokens["0", 0]])
    assert found[0] == found[1] == found[2]


def test_step_can_be_abandoned_between_layers(kinds: Callable[[str], Path]) -> None:
    engine = load(kinds("gpt2"), device="cpu")
    asked = iter([False, True])
    expected = run(load(kinds("gpt2"), device="cpu"), random_prompts(1), GREEDY)
    engine.add(EngineRequest("0", tuple(random_prompts(1)[0]), GREEDY, priority=PriorityClass.BATCH))
    engine.abandon_when(lambda: next(asked, False))
    assert engine.step() == []
    assert next(asked, None) is None, "both layers asked"
    assert drain(engine).ids("0") == expected[0]
