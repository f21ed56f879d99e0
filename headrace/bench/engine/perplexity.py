"""`headrace bench perplexity`: perplexity of each weight format against float32 on the same text.

The text is that of the licences in torch's package, which are the same on every machine for the pinned version.
"""

from __future__ import annotations

import importlib.metadata
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from shared.errors import ConfigError
from shared.models.model_store import ModelRepository
from shared.settings import QuantizationName, load
from workers.engine.config import EngineConfig
from workers.engine.execution.paged_attention import make_layer_caches
from workers.engine.execution.step_inputs import Span, StepInputs
from workers.engine.kernels.select import choose_kernels
from workers.engine.models.loader import load_model, read_model_config
from workers.engine.text.tokenizer import Tokenizer

WINDOW_TOKENS = 512  # scored together, each window on its own
BLOCK_SIZE = 16


@dataclass(frozen=True)
class FormatQuality:
    """Perplexity of a weight format. `agreement`: share of positions with float32's most likely token."""

    perplexity: float
    increase: float
    agreement: float


@dataclass(frozen=True)
class Quality:
    """Perplexity over `tokens` predictions: in float32, and of each weight format."""

    tokens: int
    float32: float
    formats: dict[str, FormatQuality]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> Table:
        table = Table("format", "tokens", "perplexity", "increase", "greedy agreement")
        table.add_row("float32", str(self.tokens), f"{self.float32:.4f}")
        for name, found in self.formats.items():
            agreement = f"{found.agreement:.2%}"
            table.add_row(name, str(self.tokens), f"{found.perplexity:.4f}", f"{found.increase:+.2%}", agreement)
        return table


def measure_perplexity(model: str, tokens: int, console: Console) -> Quality:
    """Score the text with each. Raises ConfigError if it has fewer than `tokens`, or the model cannot be loaded."""
    settings = load({"model": model}).settings
    folder = ModelRepository(settings).folder()
    ids = Tokenizer(folder).encode(licence_text())
    if len(ids) < tokens:
        raise ConfigError(f"--tokens must be at most {len(ids)}, the length of the text, got {tokens}")
    names = get_args(QuantizationName)
    options: dict[str, Any] = {"dtype": "float32", "cache_dir": settings.cache_dir}
    scorers = [Scorer(EngineConfig(folder, quantization=name, **options)) for name in names]
    lost, agreed, done = [0.0 for _ in names], [0 for _ in names], 0
    for start in range(0, tokens - 1, WINDOW_TOKENS):
        window = ids[start : min(start + WINDOW_TOKENS, tokens - 1) + 1]
        scores = [scorer.score(window) for scorer in scorers]
        lost = [total + loss for total, (loss, _) in zip(lost, scores, strict=True)]
        agreed = [
            total + int((likeliest == scores[0][1]).sum())
            for total, (_, likeliest) in zip(agreed, scores, strict=True)
        ]
        done += len(window) - 1
        console.print(f"{done} of {tokens - 1} tokens")
    float32, *others = (math.exp(total / done) for total in lost)
    formats = {
        name: FormatQuality(found, found / float32 - 1, count / done)
        for name, found, count in zip(names[1:], others, agreed[1:], strict=True)
    }
    return Quality(done, float32, formats)


def licence_text() -> str:
    """Return the texts of all different licences, in the order of their paths."""
    packages = Path(str(importlib.metadata.distribution("torch").locate_file("")))
    paths = sorted(packages.glob("torch-*.dist-info/licenses/**/*"))
    texts = dict.fromkeys(path.read_text(encoding="utf-8") for path in paths if path.is_file())
    return "\n\n".join(texts)


class Scorer:
    """Model that computes a window of tokens as the engine does, and scores its predictions."""

    def __init__(self, config: EngineConfig) -> None:
        model_config = read_model_config(config.model)
        device = torch.device("cpu")
        self._model = load_model(
            config.model,
            model_config,
            dtype=torch.float32,
            device=device,
            max_model_len=WINDOW_TOKENS,
            kernels=choose_kernels(config, device, torch.float32),
            progress=lambda share: None,
        )
        shape = (WINDOW_TOKENS // BLOCK_SIZE, model_config.num_kv_heads, BLOCK_SIZE, model_config.head_dim)
        self._caches = make_layer_caches(model_config.num_layers, shape, torch.float32, device)

    @torch.inference_mode()
    def score(self, window: list[int]) -> tuple[float, Tensor]:
        """Return the sum of -log p of all tokens but the first, and the most likely token at each position."""
        logits = self._model.forward(_read(window[:-1]), self._caches)
        assert logits is not None
        likeliest = logits.argmax(-1)
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(window[1:]), reduction="sum")
        return float(losses), likeliest


def _read(tokens: list[int]) -> StepInputs:
    """Return the inputs of one sequence from its beginning, in blocks 0, 1, 2 …, with logits for every position."""
    rows = torch.arange(len(tokens))
    blocks = torch.arange(WINDOW_TOKENS // BLOCK_SIZE)[None]
    spans = (Span(0, len(tokens), 0),)
    return StepInputs(torch.tensor(tokens), rows, torch.zeros_like(rows), blocks, rows, spans)
