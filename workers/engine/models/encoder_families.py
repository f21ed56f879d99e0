"""Families of BERT-like encoders: the names that their checkpoints have for settings and tensors.

References: Devlin et al., "BERT"; Liu et al., "RoBERTa"; Sanh et al., "DistilBERT".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from shared.errors import ConfigError

HeadKind = Literal["embedding", "sequence classifier", "token classifier"]


@dataclass(frozen=True)
class Family:
    """Names of one family.

    Attributes:
        prefix: of the encoder's tensors in a checkpoint that has a head too.
        layers: of the tensors of layers, before their number.
        classifier: of the layers of a sequence classifier's head; `squash` follows all but the last.
        hidden, num_layers, heads, intermediate, activation: keys of config.json.
        pads_positions: positions count from the padding token's id + 1.
        token_types: inputs have two types of tokens.
    """

    prefix: str
    layers: str
    query: str
    key: str
    value: str
    out: str
    attention_norm: str
    up: str
    down: str
    norm: str
    classifier: tuple[str, ...]
    squash: Literal["tanh", "relu"] = "tanh"
    hidden: str = "hidden_size"
    num_layers: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    intermediate: str = "intermediate_size"
    activation: str = "hidden_act"
    pads_positions: bool = False
    token_types: bool = True


BERT = Family(
    prefix="bert.",
    layers="encoder.layer",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    out="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    norm="output.LayerNorm",
    classifier=("bert.pooler.dense", "classifier"),
)
ROBERTA = replace(
    BERT, prefix="roberta.", classifier=("classifier.dense", "classifier.out_proj"), pads_positions=True
)
DISTILBERT = Family(
    prefix="distilbert.",
    layers="transformer.layer",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    out="attention.out_lin",
    attention_norm="sa_layer_norm",
    up="ffn.lin1",
    down="ffn.lin2",
    norm="output_layer_norm",
    classifier=("pre_classifier", "classifier"),
    squash="relu",
    hidden="dim",
    num_layers="n_layers",
    heads="n_heads",
    intermediate="hidden_dim",
    activation="activation",
    token_types=False,
)
FAMILIES: Mapping[str, Family] = {"Bert": BERT, "Roberta": ROBERTA, "XLMRoberta": ROBERTA, "DistilBert": DISTILBERT}
HEADS: Mapping[str, HeadKind] = {
    "Model": "embedding",
    "ForSequenceClassification": "sequence classifier",
    "ForTokenClassification": "token classifier",
}
ARCHITECTURES: Mapping[str, tuple[Family, HeadKind]] = {
    name + suffix: (family, head) for name, family in FAMILIES.items() for suffix, head in HEADS.items()
}


@dataclass(frozen=True)
class EncoderConfig:
    """Family, dimensions and features that decide the computation.

    Attributes:
        padding_id: of a family that counts positions from it; None for the others.
    """

    family: Family
    head: HeadKind
    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocab_size: int
    positions: int
    types: int
    eps: float
    padding_id: int | None = None

    @property
    def max_tokens(self) -> int:
        """Most tokens of one input."""
        return self.positions if self.padding_id is None else self.positions - self.padding_id - 1

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> EncoderConfig:
        """Parse config.json. Raises ConfigError for a feature that this code would compute wrongly."""
        found = next((name for name in raw.get("architectures") or () if name in ARCHITECTURES), None)
        if found is None:
            raise ConfigError(
                f"config.json: architectures must have one of {', '.join(ARCHITECTURES)}", param="model"
            )
        family, head = ARCHITECTURES[found]
        for name, supported in ((family.activation, "gelu"), ("position_embedding_type", "absolute")):
            if raw.get(name, supported) != supported:
                raise ConfigError(f"config.json: {name} must be {supported}, got {raw[name]!r}", param="model")
        try:
            config = cls(
                family,
                head,
                hidden=int(raw[family.hidden]),
                layers=int(raw[family.num_layers]),
                heads=int(raw[family.heads]),
                intermediate=int(raw[family.intermediate]),
                vocab_size=int(raw["vocab_size"]),
                positions=int(raw["max_position_embeddings"]),
                types=int(raw.get("type_vocab_size", 2)) if family.token_types else 0,
                eps=float(raw.get("layer_norm_eps", 1e-12)),
                padding_id=int(raw["pad_token_id"]) if family.pads_positions else None,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"config.json does not describe a {found}: {error!r}", param="model") from error
        if config.hidden % config.heads:
            raise ConfigError(
                "config.json: the hidden size must be a multiple of the attention heads", param="model"
            )
        return config
