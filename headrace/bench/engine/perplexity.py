"""`headrace bench perplexity`: perplexity of each weight format against float32 on the same texts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from headrace.bench.engine.perplexity_texts import TEXTS
from shared.errors import ConfigError
from shared.models.model_store import ModelRepository
from shared.settings import QuantizationName, load
from workers.engine.calibration.select import with_calibrated_weights
from workers.engine.config import EngineConfig
from workers.engine.execution.paged_attention import make_layer_caches
from workers.engine.execution.step_inputs import StepInputs
from workers.engine.kernels.select import choose_kernels
from workers.engine.models.loader import load_model, read_model_config
from workers.engine.text.tokenizer import Tokenizer

WINDOW_TOKENS = 512  # scored together, each window on its own
BLOCK_SIZE = 16
REFERENCE = "float32"
FORMATS: Mapping[str, QuantizationName] = {"int8": "int8", "int4": "int4"}  # made when a model is loaded


@dataclass(frozen=True)
class FormatQuality:
    """Perplexity of a weight format.

    Attributes:
        increase: of the perplexity over float32's.
        agreement: share of positions with float32's most likely token.
    """

    perplexity: float
    increase: float
    agreement: float


@dataclass(frozen=True)
class Quality:
    """Quality of each weight format on each text, and on all together as "all", over `tokens` predictions each."""

    tokens: int
    texts: dict[str, dict[str, FormatQuality]]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> Table:
        table = Table("format", *self.texts, "greedy agreement")
        for name, whole in self.texts["all"].items():
            found = [self.texts[text][name] for text in self.texts]
            cells = [f"{each.perplexity:.3f} ({each.increase:+.2%})" for each in found]
            table.add_row(name, *cells, f"{whole.agreement:.2%}")
        return table


def measure_perplexity(
    model: str,
    texts: Sequence[str],
    tokens: int,
    formats: Sequence[str],
    checkpoints: Mapping[str, str],
    console: Console,
) -> Quality:
    """Score the texts of those names with float32, each format and each checkpoint.

    Raises ConfigError if a text has fewer than `tokens`, or a model cannot be loaded.

    Args:
        formats: names in FORMATS.
        checkpoints: models with the same tokenizer, by name.
    """
    settings = load({"model": model}).settings
    folder = ModelRepository(settings).folder()
    windows = {name: _windows(Tokenizer(folder), name, tokens) for name in texts}
    options: dict[str, Any] = {"dtype": "float32", "device": "cpu", "cache_dir": settings.cache_dir}
    configs = {REFERENCE: EngineConfig(folder, **options)}
    configs |= {name: EngineConfig(folder, quantization=FORMATS[name], **options) for name in formats}
    for name, place in checkpoints.items():
        stored = ModelRepository(load({"model": place}).settings).folder()
        configs[name] = EngineConfig(stored, **options)
    scores: dict[str, dict[str, Scores]] = {}
    for name, config in configs.items():
        scorer = Scorer(config)  # one model at a time is in memory
        scores[name] = {text: scorer.score_all(parts) for text, parts in windows.items()}
        scores[name]["all"] = Scores.join(scores[name].values())
        console.print(f"{name}: {math.exp(scores[name]['all'].loss):.3f}")
    return Quality(tokens - 1, {text: _compare(scores, text) for text in (*texts, "all")})


def _windows(tokenizer: Tokenizer, name: str, tokens: int) -> list[list[int]]:
    ids = tokenizer.encode(TEXTS[name]())
    if len(ids) < tokens:
        raise ConfigError(f"--tokens must be at most {len(ids)}, the length of the text {name}, got {tokens}")
    starts = range(0, tokens - 1, WINDOW_TOKENS)
    return [ids[start : min(start + WINDOW_TOKENS, tokens - 1) + 1] for start in starts]


def _compare(scores: dict[str, dict[str, Scores]], text: str) -> dict[str, FormatQuality]:
    reference = scores[REFERENCE][text]
    found = {}
    for name, of_format in scores.items():
        each = of_format[text]
        agreement = float((each.likeliest == reference.likeliest).double().mean())
        found[name] = FormatQuality(math.exp(each.loss), math.exp(each.loss - reference.loss) - 1, agreement)
    return found


@dataclass(frozen=True)
class Scores:
    """Negative log-likelihood of each token of a text, and the most likely token at each position, [n] both."""

    losses: Tensor
    likeliest: Tensor

    @classmethod
    def join(cls, parts: Iterable[Scores]) -> Scores:
        kept = list(parts)
        return cls(torch.cat([each.losses for each in kept]), torch.cat([each.likeliest for each in kept]))

    @property
    def loss(self) -> float:
        return float(self.losses.double().mean())


class Scorer:
    """Model that computes a window of tokens as the engine does, and scores its predictions."""

    def __init__(self, config: EngineConfig) -> None:
        model_config = read_model_config(config.model)
        device = torch.device("cpu")
        kernels = choose_kernels(config, device, torch.float32)
        kernels = with_calibrated_weights(kernels, config, model_config, Tokenizer(config.model))
        self._model = load_model(
            config.model,
            model_config,
            dtype=torch.float32,
            device=device,
            max_model_len=WINDOW_TOKENS,
            kernels=kernels,
            progress=lambda share: None,
        )
        shape = (WINDOW_TOKENS // BLOCK_SIZE, model_config.num_kv_heads, BLOCK_SIZE, model_config.head_dim)
        self._caches = make_layer_caches(model_config.num_layers, shape, torch.float32, device)

    def score_all(self, windows: Sequence[list[int]]) -> Scores:
        """Return the scores of all tokens but the first of each window."""
        return Scores.join(map(self._score, windows))

    @torch.inference_mode()
    def logits(self, window: list[int]) -> Tensor:
        """Return the logits at each position of at most WINDOW_TOKENS tokens."""
        logits = self._model.forward(_read(window), self._caches)
        assert logits is not None  # nothing interrupts it
        return logits

    def _score(self, window: list[int]) -> Scores:
        logits = self.logits(window[:-1])
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(window[1:]), reduction="none")
        return Scores(losses, logits.argmax(-1))


def _read(tokens: list[int]) -> StepInputs:
    """Return the inputs of one sequence from its beginning, in blocks 0, 1, 2 …, with logits for every position."""
    rows = torch.arange(len(tokens))
    blocks = torch.arange(WINDOW_TOKENS // BLOCK_SIZE)[None]
    return StepInputs(torch.tensor(tokens), rows, torch.zeros_like(rows), blocks, rows)
