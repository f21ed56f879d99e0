"""A checkpoint is loaded correctly, or refused with the reason."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from shared.errors import ConfigError
from tests.support.checkpoints import DYNAMIC, LINEAR, LLAMA3, SHAPE, YARN, edit_config
from tests.support.engine_driver import load, run
from workers.engine.kernels.torch_kernels import TorchKernels
from workers.engine.models.checkpoint import SafetensorsCheckpoint
from workers.engine.models.llama_config import LlamaModelConfig
from workers.engine.models.registry import ARCHITECTURES
from workers.engine.models.rope import rope_table

PROMPT = list(b"water")
WINDOWED: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "model"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported"),
        ({"architectures": ["MixtralForCausalLM"]}, "num_experts must be a positive integer"),
        (
            {"architectures": ["MixtralForCausalLM"], "num_local_experts": 2, "num_experts_per_tok": 3},
            "num_experts_per_tok must be at most num_experts 2, got 3",
        ),
        ({"architectures": ["Qwen3MoeForCausalLM"], "mlp_only_layers": 3}, "mlp_only_layers must be a list"),
        ({"architectures": ["GptOssForCausalLM"], "swiglu_limit": 5.0}, "swiglu_limit must be 7.0, got 5.0"),
        ({"architectures": None, "model_type": "odd"}, "odd"),
        ({"quantization_config": {"quant_method": "hqq"}}, "quantized .hqq.; supported: gptq, awq"),
        ({"hidden_act": "gelu"}, "hidden_act must be silu, got gelu"),
        ({"num_local_experts": 8}, "LlamaForCausalLM has no mixture of experts, but num_local_experts is set"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "rope type longrope"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "needs factor"),
        ({"rope_parameters": [1]}, r"rope_parameters must be an object, got \[1\]"),
        ({"rope_parameters": {"rope_theta": "far"}}, "rope_theta must be a positive number, got 'far'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "factor must be a positive number, got 0"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 10**40}},
            "factor must be a positive number, got 1000",
        ),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2}}, "rope type llama3 needs low_freq_factor"),
        ({"rope_parameters": {**LLAMA3, "low_freq_factor": 4.0}}, "high_freq_factor must be above"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be a positive number, got 'small'"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a positive integer, got True"),
        ({"architectures": "LlamaForCausalLM"}, "architectures must be a list of names"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be an integer or a list of integers, got '</s>'"),
        ({"partial_rotary_factor": 0.5}, "partial"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "differ by layer"),
        ({"num_key_value_heads": 4}, "cannot share"),
        ({"hidden_size": "big"}, "hidden_size"),
        ({"hidden_size": 24, "head_dim": 8}, "has shape"),
        ({"num_hidden_layers": 2}, "tensors that its architecture does not"),
        ({"num_hidden_layers": 4}, "no tensor model.layers.3"),
        ({"dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 0}, "sliding_window must be a positive"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layer_types must have 3 .* linear_attention"),
        ({"layer_types": ["full_attention"]}, "layer_types must have 3 entries"),
        ({"layer_types": "sliding_attention"}, "layer_types must have 3 entries"),
        *(
            ({"architectures": [f"{family}ForCausalLM"], **fields, "sliding_window": None}, "needs a sliding")
            for family, fields in {
                "Gemma2": {"hidden_act": "gelu_pytorch_tanh"},
                "Gemma3": {"hidden_act": "gelu_pytorch_tanh"},
                "GptOss": {},
                "Mistral": WINDOWED,
                "Qwen2": WINDOWED | {"use_sliding_window": True},
            }.items()
        ),
        (WINDOWED | {"architectures": ["Qwen3ForCausalLM"], "sliding_window": 9}, "off by use_sliding_window"),
        ({"architectures": ["Qwen2ForCausalLM"], "max_window_layers": -1}, "must be an integer of at least 0"),
        ({"architectures": ["Gemma2ForCausalLM"], "hidden_act": "gelu"}, "must be gelu_pytorch_tanh, got gelu"),
        (
            {"architectures": ["Gemma3ForCausalLM"], "use_bidirectional_attention": True},
            "use_bidirectional_attention is not supported",
        ),
        (
            {
                "architectures": ["Gemma2ForCausalLM"],
                "hidden_act": "gelu_pytorch_tanh",
                "attn_logit_softcapping": "much",
            },
            "attn_logit_softcapping must be a positive number, got 'much'",
        ),
        ({"architectures": ["Qwen3ForCausalLM"]}, "no tensor .*q_norm"),
    ],
)
def test_unsupported_config_is_refused(copy: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(copy, **changes)
    with pytest.raises(ConfigError, match=message):
        load(copy)


def test_windows_of_null_are_full_attention_where_layers_have_no_type() -> None:
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "intermediate_size": 8}
    raw = {**LlamaConfig(**SHAPE).to_dict(), "use_sliding_window": True, "sliding_window": None}
    types = {"layer_types": ["full_attention"] * raw["num_hidden_layers"]}
    for name, fields in {
        "Mistral": {},
        "Mixtral": experts,
        "Qwen2": {},
        "Qwen3Moe": experts,
        "Gemma3": {"hidden_act": "gelu_pytorch_tanh", **types},
        "GptOss": {**experts, **types},
    }.items():
        architecture = f"{name}ForCausalLM"
        parsed = ARCHITECTURES[architecture].parse_config(architecture, {**raw, **fields})
        assert set(parsed.windows) == {None}


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no model.safetensors"),
        ("tokenizer.json", "tokenizer"),
    ],
)
def test_folder_that_lacks_a_file_is_refused(copy: Path, missing: str, message: str) -> None:
    (copy / missing).unlink()
    with pytest.raises(ConfigError, match=message):
        load(copy)


def test_malformed_files_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"not tensors at all")
    with pytest.raises(ConfigError, match=r"model\.safetensors is not a safetensors file"):
        load(copy)
    for broken in ("{broken", "[1]", '{"tokenizer_class": 3}'):
        (copy / "tokenizer_config.json").write_text(broken)
        with pytest.raises(ConfigError, match="tokenizer"):
            load(copy)
    tokenizer = (copy / "tokenizer.json").read_text()
    for broken in (tokenizer[:-9], tokenizer.replace('"BPE"', "3"), "[" * 100_000):
        (copy / "tokenizer.json").write_text(broken)
        with pytest.raises(ConfigError, match=r"the tokenizer in .* cannot be loaded"):
            load(copy)
    for broken in ("{broken", "[" * 100_000):
        (copy / "config.json").write_text(broken)
        with pytest.raises(ConfigError, match="cannot be read"):
            load(copy)
    with pytest.raises(ConfigError, match="not a folder"):
        load(copy / "nowhere")


def test_index_cannot_name_files_outside_its_folder(copy: Path) -> None:
    (copy / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/weights.safetensors"}}')
    with pytest.raises(ConfigError, match="outside"):
        load(copy)


def test_integer_weights_are_refused(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.int8)
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(ConfigError, match=r"model\.safetensors: tensor model\.norm\.weight has dtype torch\.int8"):
        load(copy)


def test_checkpoint_that_does_not_fit_is_refused_before_a_tensor_is_read(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a last tensor that is missing, the first ones are not read either."""
    weights = load_file(copy / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, copy / "model.safetensors")
    monkeypatch.setattr(SafetensorsCheckpoint, "read", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(ConfigError, match=r"no tensor model\.norm\.weight"):
        load(copy)


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.norm.weight", torch.nan),
        ("model.layers.1.mlp.down_proj.weight", -torch.inf),
        ("model.embed_tokens.weight", torch.nan),
    ],
)
def test_weights_that_are_not_finite_are_refused(copy: Path, name: str, value: float, quantization: str) -> None:
    weights = load_file(copy / "model.safetensors")
    weights[name].view(-1)[-1] = value
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(ConfigError, match=rf"model\.safetensors: tensor {name} has values that are not finite"):
        load(copy, quantization=quantization, device="cpu")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_agrees_on_the_first_token(dtype: str, checkpoints: Callable[[str], Path]) -> None:
    """Given half precision, the first greedy token is that of float32."""
    folder = checkpoints("qwen2")
    half, full = (run(load(folder, dtype=name), [PROMPT])[0] for name in (dtype, "float32"))
    assert half[0] == full[0]
    assert len(half) == len(full)


@pytest.mark.parametrize("rope", [LINEAR, DYNAMIC, LLAMA3, YARN, {**YARN, "mscale": 0.7, "mscale_all_dim": 1.1}])
def test_rope_tables_match_transformers(rope: dict[str, Any]) -> None:
    reference = LlamaConfig(**SHAPE, head_dim=32, rope_parameters=dict(rope))
    angles = LlamaRotaryEmbedding(reference)(torch.zeros(1), torch.arange(512)[None])
    raw = {**SHAPE, "head_dim": 32}
    both_spellings = [
        {**raw, "rope_parameters": dict(rope)},
        {
            **raw,
            "rope_theta": rope["rope_theta"],
            "rope_scaling": {k: v for k, v in rope.items() if k != "rope_theta"},
        },
    ]
    for config in both_spellings:
        table = rope_table(LlamaModelConfig.parse("LlamaForCausalLM", config).rope, 32, 512, TorchKernels())
        for mine, theirs in zip(table, angles, strict=True):
            torch.testing.assert_close(mine, theirs[0, :, :16], rtol=1e-5, atol=2e-5)
