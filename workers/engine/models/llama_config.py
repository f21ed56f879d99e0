"""config.json of decoders with a layer like Llama's; families/ has those that differ more.

Every feature that the model code would compute wrongly is refused here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shared.errors import ConfigError
from workers.engine.kernels import Activation
from workers.engine.models.decoder import DecoderConfig, parse_token_ids
from workers.engine.models.stored.formats import parse_stored_format

ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "factors")
# transformers' defaults where config.json has no sliding_window, and no layer from which on Qwen's layers have it
_DEFAULT_WINDOW_TOKENS, _DEFAULT_FIRST_WINDOW = 4096, 28
MAX_INTEGER, MAX_NUMBER = 2**31 - 1, 1e30
# parameters that a kind of scaling of rotary embeddings needs ("factor" for others); those that are numbers
_NEEDED = {"default": (), "factors": ("factors",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}
_ROPE_NUMBERS = {
    *("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings", "attention_factor"),
    *("beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
}


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding: its base, its kind of scaling, and the parameters of that kind."""

    theta: float
    kind: str = "default"
    scaling: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExpertNames:
    """Names of an experts' tensors below a layer's: of the whole, of the router, and of the parts of an expert.

    `stacked`: each part of all experts is one tensor, and `gate` is both gate and up.
    """

    prefix: str
    router: str
    gate: str
    up: str
    down: str
    stacked: bool = False


@dataclass(frozen=True)
class ExpertsConfig:
    """Mixture of experts.

    Attributes:
        count, chosen: experts of a layer, and those that compute a row.
        size: intermediate size of an expert.
        layers: layers that have experts; the others have one MLP.
        normalized: the scores of a row's experts are scaled to a sum of 1.
    """

    names: ExpertNames
    count: int
    chosen: int
    size: int
    layers: frozenset[int]
    normalized: bool


@dataclass(frozen=True, kw_only=True)
class LlamaModelConfig(DecoderConfig):
    """Dimensions and features of a decoder.

    Attributes:
        windows: for each layer, the positions that a row sees, or None for all.
        local_rope: rotary embedding of layers with a window, where it differs.
        query_scalar: number whose root divides scores, if it is not the dimension of a head.
        score_cap, logit_cap: soft caps of scores and of logits.
        norm_offset: what is added to the weights of norms.
        wide_norms: norms multiply by their weights before they round.
        post_norms: what attention and MLP return is normalized before it is added.
        embedding_scale: factor on embeddings.
        sinks: each head has a logit that takes part in the softmax without a value.
    """

    hidden_size: int
    intermediate_size: int
    num_heads: int
    norm_eps: float
    tie_word_embeddings: bool
    qk_norm: bool
    rope: RopeConfig
    windows: tuple[int | None, ...]
    local_rope: RopeConfig | None = None
    query_scalar: float | None = None
    score_cap: float | None = None
    logit_cap: float | None = None
    activation: Activation = Activation.SILU
    norm_offset: float = 0.0
    wide_norms: bool = False
    post_norms: bool = False
    embedding_scale: float = 1.0
    sinks: bool = False
    experts: ExpertsConfig | None = None

    @classmethod
    def parse(cls, architecture: str, raw: dict[str, Any]) -> LlamaModelConfig:
        """Parse config.json. Raises ConfigError for a feature that the model code does not compute."""
        require(raw, "hidden_act", "silu")
        for name in ("num_local_experts", "num_experts"):
            if raw.get(name):
                raise ConfigError(f"config.json: {architecture} has no mixture of experts, but {name} is set")
        return cls.read(
            architecture,
            raw,
            qk_norm=architecture == "Qwen3ForCausalLM",
            rope=read_rope(raw),
            windows=_windows(raw, architecture),
        )

    @classmethod
    def read(
        cls,
        architecture: str,
        raw: dict[str, Any],
        *,
        rope: RopeConfig,
        windows: Sequence[int | None],
        **features: Any,
    ) -> LlamaModelConfig:
        """Read the dimensions; `features` are fields. Raises ConfigError for values that are not valid."""
        parse_stored_format(raw)
        heads = read_integer(raw, "num_attention_heads")
        hidden = read_integer(raw, "hidden_size")
        kv_heads = read_integer(raw, "num_key_value_heads", heads)
        head_dim = read_integer(raw, "head_dim", hidden // heads)
        if heads % kv_heads or head_dim % 2:
            raise ConfigError(
                f"config.json: {heads} heads of dimension {head_dim} cannot share {kv_heads} key-value heads"
            )
        return cls(
            architecture=architecture,
            vocab_size=read_integer(raw, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=read_integer(raw, "intermediate_size"),
            num_layers=read_integer(raw, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=read_number(raw, "rms_norm_eps", 1e-6),
            max_position_embeddings=read_integer(raw, "max_position_embeddings"),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            rope=rope,
            windows=tuple(windows),
            sliding_window=None,
            dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
            eos_token_ids=parse_token_ids(raw.get("eos_token_id")),
            **features,
        )


def require(raw: dict[str, Any], name: str, value: Any) -> None:
    """Raise ConfigError if a field has another value than the only one that is supported."""
    if raw.get(name) not in (None, value):
        raise ConfigError(f"config.json: {name} must be {value}, got {raw[name]}")


def read_integer(raw: dict[str, Any], name: str, default: int | None = None, *, least: int = 1) -> int:
    value = raw.get(name)
    if value is None:
        value = default
    if type(value) is not int or not least <= value <= MAX_INTEGER:
        allowed = "a positive integer" if least else "an integer of at least 0"
        raise ConfigError(f"config.json: {name} must be {allowed}, got {value!r:.80}")
    return value


def read_number(raw: dict[str, Any], name: str, default: float) -> float:
    """Return a positive number."""
    value = raw.get(name)
    if value is None:
        return default
    if type(value) not in (int, float) or not 0 < value <= MAX_NUMBER:
        raise ConfigError(f"config.json: {name} must be a positive number, got {value!r:.80}")
    return float(value)


def read_rope(raw: dict[str, Any]) -> RopeConfig:
    """Parse either spelling: rope_parameters, or rope_theta beside rope_scaling."""
    given = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise ConfigError(f"config.json: rope_parameters must be an object, got {given!r:.80}")
    scaling = dict(given)
    if any(isinstance(value, dict) for value in scaling.values()):
        raise ConfigError("config.json: rotary embeddings that differ by layer are not supported")
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    theta = read_number(
        {"rope_theta": scaling.pop("rope_theta", None) or raw.get("rope_theta")}, "rope_theta", 10_000.0
    )
    partial = scaling.pop("partial_rotary_factor", None) or raw.get("partial_rotary_factor") or 1.0
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        raise ConfigError(f"config.json: rope type {kind} is not supported; supported: {', '.join(ROPE_TYPES)}")
    if partial != 1.0:
        raise ConfigError("config.json: partial rotary embeddings are not supported")
    length = "original_max_position_embeddings"
    scaling[length] = raw.get(length) or scaling.get(length) or read_integer(raw, "max_position_embeddings")
    _normalize_scaling(kind, scaling)
    return RopeConfig(theta, kind, scaling)


def _normalize_scaling(kind: str, scaling: dict[str, Any]) -> None:
    """Make numbers floats, and remove optional ones that are 0 or null. Raises ConfigError for other values."""
    needed = _NEEDED.get(kind, ("factor",))
    for name in needed:
        if scaling.get(name) is None:
            raise ConfigError(f"config.json: rope type {kind} needs {name}")
    for name in sorted(_ROPE_NUMBERS & scaling.keys()):
        if scaling[name] or name in needed:
            scaling[name] = read_number(scaling, name, 1.0)
        else:
            del scaling[name]
    if kind == "llama3" and scaling["low_freq_factor"] >= scaling["high_freq_factor"]:
        raise ConfigError("config.json: high_freq_factor must be above low_freq_factor")


def layer_windows(raw: dict[str, Any], window: int | None, default: Sequence[bool]) -> list[int | None]:
    """Return the window of each layer by `layer_types`, or else by `default`, which says whether a layer has it.

    Raises ConfigError for other types of layers, and without a window for layers of sliding_attention, which
    transformers refuses too.
    """
    layers, given = read_integer(raw, "num_hidden_layers"), raw.get("layer_types")
    types = given if isinstance(given, list) else [] if given is None else [given]
    local = [name == "sliding_attention" for name in types] or list(default)
    unknown = {str(name) for name in types} - {"sliding_attention", "full_attention"}
    if unknown or len(local) != layers:
        raise ConfigError(
            f"config.json: layer_types must have {layers} entries, full_attention or sliding_attention; got "
            f"{', '.join(sorted(unknown)) or len(local)}"
        )
    if window is not None:
        window = read_integer({"sliding_window": window}, "sliding_window")
    elif any(local):
        raise ConfigError(
            "config.json: sliding_attention needs a sliding_window, but it is null, or off by use_sliding_window"
        )
    return [window if is_local else None for is_local in local]


def _windows(raw: dict[str, Any], architecture: str) -> list[int | None]:
    layers = read_integer(raw, "num_hidden_layers")
    window, first = raw.get("sliding_window", _DEFAULT_WINDOW_TOKENS), 0
    if architecture != "MistralForCausalLM" and not raw.get("use_sliding_window"):
        window = None
    if architecture.startswith("Qwen"):
        first = read_integer(raw, "max_window_layers", _DEFAULT_FIRST_WINDOW, least=0)
    return layer_windows(raw, window, [window is not None and index >= first for index in range(layers)])
