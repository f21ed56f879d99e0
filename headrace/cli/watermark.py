"""`headrace watermark`: whether a text has the installation's watermark."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.options import Config, Json, print_json
from shared.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Watermarks of answers.")

MAX_CHARS = 10_000_000


@app.callback()
def _group() -> None:
    """Keep `detect` a subcommand although it is the only one."""


@app.command()
def detect(
    text: Annotated[Path, typer.Argument(help="File with the text; - reads standard input.")],
    model: Annotated[str | None, typer.Option(help="The model whose answer it may be; default: the setting.")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Say how likely the text would score as high without a watermark, under the key of the settings."""
    from shared.models.model_store import ModelRepository
    from shared.settings import load
    from workers.engine.models.loader import read_model_config
    from workers.engine.sampling.watermark import TokenWatermark
    from workers.engine.sampling.watermark_detection import detect as score
    from workers.engine.text.tokenizer import Tokenizer

    settings = load({} if model is None else {"model": model}, file=config).settings
    mark = TokenWatermark.from_settings(settings)
    read = _read(text)
    folder = ModelRepository(settings).folder()
    tokens = Tokenizer(folder).encode(read, special=False, param="text")
    found = score(mark, tokens, read_model_config(folder).vocab_size)
    if as_json:
        print_json({"algorithm": mark.algorithm, "tokens": len(tokens), **asdict(found)})
        return
    print(f"{found.scored} of {len(tokens)} tokens scored with {mark.algorithm}: {found.score:.3f}")
    print(f"a text without the watermark scores as high with a probability of {found.p_value:.2g}")


def _read(path: Path) -> str:
    try:
        if str(path) == "-":
            read = sys.stdin.read(MAX_CHARS + 1)
        else:
            with path.open(encoding="utf-8") as file:
                read = file.read(MAX_CHARS + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", param="text") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8", param="text") from error
    if len(read) > MAX_CHARS:
        raise ConfigError(f"the text must have at most {MAX_CHARS} characters", param="text")
    return read
