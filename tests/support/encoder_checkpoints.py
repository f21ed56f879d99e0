"""Tiny random encoders of each architecture, with tokenizers that have their special tokens and types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    DistilBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLMRobertaConfig,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:"
SHAPE: dict[str, Any] = {"vocab_size": 96, "initializer_range": 0.4, "max_position_embeddings": 48}
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
DISTILBERT = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
ROBERTA = {**SHAPE, **BERT, "pad_token_id": 1, "type_vocab_size": 1}
CONFIGS: dict[str, PreTrainedConfig] = {
    "Bert": BertConfig(**SHAPE, **BERT),
    "Roberta": RobertaConfig(**ROBERTA),
    "XLMRoberta": XLMRobertaConfig(**ROBERTA),
    "DistilBert": DistilBertConfig(**SHAPE, **DISTILBERT),
}


@dataclass(frozen=True)
class SpecialTokens:
    """Special tokens in the order of their ids, and the forms of one text and of two."""

    pad: str
    unknown: str
    start: str
    end: str
    order: tuple[str, ...]
    pair: str


OF_BERT = SpecialTokens(
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]"),
    order=("[PAD]", "[UNK]", "[CLS]", "[SEP]"),
    pair="[CLS] $A [SEP] $B:1 [SEP]:1",
)
OF_ROBERTA = SpecialTokens(
    *("<pad>", "<unk>", "<s>", "</s>"),
    order=("<s>", "<pad>", "</s>", "<unk>"),
    pair="<s> $A </s> </s> $B </s>",
)


def letter_tokenizer(special: SpecialTokens, inputs: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per letter, which returns these inputs of a model."""
    vocab = {text: index for index, text in enumerate((*special.order, *LETTERS, *map("##{}".format, LETTERS)))}
    rust = RustTokenizer(models.WordPiece(vocab=vocab, unk_token=special.unknown))
    rust.normalizer = normalizers.BertNormalizer()
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.post_processor = TemplateProcessing(
        single=f"{special.start} $A {special.end}",
        pair=special.pair,
        special_tokens=[(text, vocab[text]) for text in (special.start, special.end)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=rust,
        pad_token=special.pad,
        unk_token=special.unknown,
        cls_token=special.start,
        sep_token=special.end,
        model_input_names=list(inputs),
    )


def save_encoder(folder: Path, architecture: str, **config: Any) -> Path:
    """Save a random model of that architecture, such as BertForSequenceClassification, and its tokenizer.

    Args:
        config: fields of config.json to set.
    """
    name = next(each for each in CONFIGS if architecture.startswith(each))
    made = type(CONFIGS[name])(**{**CONFIGS[name].to_dict(), **config})
    torch.manual_seed(len(architecture))
    model = getattr(transformers, architecture)(made).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    inputs = ("input_ids", "token_type_ids", "attention_mask")
    letter_tokenizer(
        OF_ROBERTA if "Roberta" in name else OF_BERT, inputs if name == "Bert" else inputs[::2]
    ).save_pretrained(folder)
    return folder


def hf_encoder(folder: Path, architecture: str) -> PreTrainedModel:
    """Load a checkpoint with transformers, in float32."""
    return getattr(transformers, architecture).from_pretrained(folder, dtype=torch.float32).eval()
