"""`headrace bench perplexity`: perplexity of int8 against float32 on the same text.

The text is that of the licences in torch's package, which are the same on every machine for the pinned version.
"""

from __future__ import annotations

import importlib.metadata
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from shared.errors import ConfigError
from shared.models.model_store import ModelRepository
from shared.settings import load
from workers.engine.config import EngineConfig
from workers.engine.execution.paged_attention import make_layer_caches
from workers.engine.execution.step_inputs import Span, StepInputs
from workers.engine.kernels.select import choose_kernels
from workers.engine.models.loader import load_model, read_model_config
from workers.engine.text.tokenizer import Tokenizer

WINDOW_TOKENS = 512  # scored together, each window on its own
BLOCK_SIZE = 16


@dataclass(frozen=True)
class Quality:
    """Perplexities over `tokens` predictions. `agreement`: share of positions where the greedy tokens agree."""

    tokens: int
    float32: float
    int8: float
    agreement: float

    @property
    def increase(self) -> float:
        return self.int8 / self.float32 - 1

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "increase": self.increase}

    def table(self) -> Table:
        table = Table("tokens", "float32", "int8", "increase", "greedy agreement")
        table.add_row(
            str(self.tokens),
            f"{self.float32:.4f}",
            f"{self.int8:.4f}",
            f"{self.increase:+.2%}",
            f"{self.agreement:.2%}",
        )
        return table


def measure_perplexity(model: str, tokens: int, console: Console) -> Quality:
    """Score the text with both. Raises ConfigError if it has fewer than `tokens`, or the model cannot be loaded."""
    settings = load({"model": model}).settings
    folder = ModelRepository(settings).folder()
    ids = Tokenizer(folder).encode(licence_text())
    if len(ids) < tokens:
        raise ConfigError(f"--tokens must be at most {len(ids)}, the length of the text, got {tokens}")
    models = []
    for quantization in ("none", "int8"):
        config = EngineConfig(folder, dtype="float32", quantization=quantization, cache_dir=settings.cache_dir)
        models.append(Scorer(config))
    lost, agreed, done = [0.0, 0.0], 0, 0
    for start in range(0, tokens - 1, WINDOW_TOKENS):
        window = ids[start : min(start + WINDOW_TOKENS, tokens - 1) + 1]
        scores = [scorer.score(window) for scorer in models]
        lost = [total + loss for total, (loss, _) in zip(lost, scores, strict=True)]
        agreed += int((scores[0][1] == scores[1][1]).sum())
        done += len(window) - 1
        console.print(f"{done} of {tokens - 1} tokens")
    float32, int8 = (math.exp(total / done) for total in lost)
    return Quality(done, float32, int8, agreed / done)


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
