"""Program that writes a model folder around a GGUF file: `python -m workers.engine.models.gguf FILE.gguf FOLDER`.

It ends with status 2 and one line on stderr for a file that is refused.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from shared.errors import ConfigError
from shared.models.gguf_header import read_gguf_header
from shared.models.weight_files import GGUF_NAME
from workers.engine.models.gguf.checkpoint import read_rope_factors
from workers.engine.models.gguf.config import Metadata, end_tokens, parse_config
from workers.engine.models.gguf.tokenizer import load_tokenizer

TOKENS = "tokenizer.ggml.tokens"


def write_folder(path: Path, folder: Path) -> None:
    """Write config.json, generation_config.json, the tokenizer, and a link to the file. Raises ConfigError."""
    header = read_gguf_header(path, {TOKENS})
    config = parse_config(header, read_rope_factors(path, header))
    meta = Metadata(header)
    tokens = meta.value(TOKENS) or []
    if not isinstance(tokens, list):
        raise ConfigError(f"{path}: {TOKENS} must be a list, got {tokens!r:.80}", param="model")
    if len(tokens) > config["vocab_size"]:
        raise ConfigError(
            f"{path}: the tokenizer has {len(tokens)} tokens, more than the {config['vocab_size']} of the model",
            param="model",
        )
    folder.mkdir(parents=True, exist_ok=True)
    load_tokenizer(path).save_pretrained(folder)
    generation = {name: config[name] for name in ("bos_token_id",)} | {"eos_token_id": end_tokens(meta, tokens)}
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    (folder / GGUF_NAME).symlink_to(path.resolve())


if __name__ == "__main__":
    try:
        write_folder(Path(sys.argv[1]), Path(sys.argv[2]))
    except ConfigError as error:
        sys.stderr.write(f"{error.message}\n")
        sys.exit(2)
