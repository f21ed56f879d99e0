"""`headrace watermark`: find the server's watermark in a text, and measure how often it is found by mistake."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.options import Config, Json, plain_table, print_json, read_text
from headrace.terminal import Terminal
from shared.errors import ConfigError

if TYPE_CHECKING:
    from shared.settings import Settings
    from workers.engine.sampling.watermark import TokenMark
    from workers.engine.text.tokenizer import Tokenizer

app = typer.Typer(no_args_is_help=True, help="Watermarks of answers: detect one, calibrate the detection.")

LEVELS = (0.05, 0.01, 0.001)

MarkedModel = Annotated[
    str | None, typer.Option("--model", help="Model whose answer it may be; default: the setting `model`.")
]


@app.command()
def detect(
    text: Annotated[Path, typer.Argument(help="File with the text; - reads standard input.")],
    model: MarkedModel = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Find the watermark of the settings in a text: print how likely a text without it scores as high."""
    from workers.engine.sampling.watermark_detection import detect as find

    settings = _settings(model, config)
    tokenizer, mark, vocab = _load(settings)
    tokens = tokenizer.encode(read_text(text, "text"), special=False, param="text")
    found = find(mark, tokens, vocab)
    if as_json:
        print_json({"algorithm": settings.watermark_algorithm, "tokens": len(tokens), **asdict(found)})
        return
    print(f"{settings.watermark_algorithm}: {found.scored} of {len(tokens)} tokens score {found.score:.3f}")
    print(f"probability that a text without the watermark scores as high: {found.p_value:.2g}")


@app.command()
def calibrate(
    texts: Annotated[list[Path], typer.Argument(help="Files with texts that have no watermark.")],
    model: MarkedModel = None,
    tokens: Annotated[int, typer.Option(min=8, max=10_000, help="Tokens of each excerpt.")] = 200,
    excerpts: Annotated[int, typer.Option(min=1, max=100_000, help="Maximum number of excerpts.")] = 200,
    keys: Annotated[int, typer.Option(min=0, max=10_000, help="Random keys, besides that of the settings.")] = 9,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Measure the false positives: score excerpts of texts without a watermark under several keys."""
    from workers.engine.sampling.watermark import MAX_KEY
    from workers.engine.sampling.watermark_detection import detect as find

    tokenizer, mark, vocab = _load(_settings(model, config))
    parts = _excerpts(
        [tokenizer.encode(read_text(text, "texts"), special=False, param="texts") for text in texts], tokens
    )
    if not parts:
        raise ConfigError(f"the texts must have at least {tokens} tokens", param="texts")
    draw = SystemRandom()
    marks: list[TokenMark] = [mark, *(replace(mark, key=draw.randrange(1, MAX_KEY)) for _ in range(keys))]
    rows = []
    found = {each: [find(each, part, vocab).p_value for part in parts[:excerpts]] for each in marks}
    for name, chosen in (("the settings' key", marks[:1]), ("random keys", marks[1:])):
        values = [value for each in chosen for value in found[each]]
        if values:
            shares = {str(level): sum(value < level for value in values) / len(values) for level in LEVELS}
            rows.append((name, len(values), shares))
    if as_json:
        rates = [{"key": name, "tests": tests, "share_below": shares} for name, tests, shares in rows]
        print_json({"tokens": tokens, "rates": rates})
        return
    table = plain_table("key", "tests", *(f"p < {level}" for level in LEVELS))
    for name, tests, shares in rows:
        table.add_row(name, str(tests), *(f"{share:.4f}" for share in shares.values()))

    Terminal().print(table)


def _settings(model: str | None, config: Path | None) -> Settings:
    from shared.settings import load

    return load({} if model is None else {"model": model}, file=config).settings


def _load(settings: Settings) -> tuple[Tokenizer, TokenMark, int]:
    """Return the tokenizer of the settings' model, the mark, and the size of the vocabulary."""
    from shared.models.model_store import ModelRepository
    from workers.engine.models.loader import read_model_config
    from workers.engine.sampling.watermark import make_mark
    from workers.engine.text.tokenizer import Tokenizer

    mark = make_mark(settings)
    folder = ModelRepository(settings).folder()
    return Tokenizer(folder), mark, read_model_config(folder).vocab_size


def _excerpts(texts: list[list[int]], length: int) -> list[list[int]]:
    return [text[start : start + length] for text in texts for start in range(0, len(text) - length + 1, length)]
