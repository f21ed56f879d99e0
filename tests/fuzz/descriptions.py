"""Reading of mutated model descriptions: config.pbtxt, model.toml, and JSON in an order to load a model."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from shared.errors import ConfigError
from shared.repository.config_writing import config_from_spec
from shared.repository.model_config import config_to_json, spec_from_config, spec_from_json
from tests.support.model_configs import ALL, TOML, mutated
from workers.repository.model_toml import parse_model_toml
from workers.repository.pbtxt import parse_pbtxt

MAX_MESSAGE_CHARS = 1_000


def fuzz_descriptions(*, cases: int, seed: int) -> Counter[tuple[str, str]]:
    """Read `cases` mutations in each form. Return how many were refused and accepted, by form.

    Raises what a reader raises, other than a ConfigError of bounded length that names what is at fault.
    """
    source = random.Random(seed)
    counts: Counter[tuple[str, str]] = Counter()
    for form, (texts, read) in _forms().items():
        for _ in range(cases):
            text = mutated(source.choice(texts), source)
            try:
                read(text)
            except ConfigError as error:
                assert error.param and len(error.message) <= MAX_MESSAGE_CHARS, text
                counts[form, "refused"] += 1
            else:
                counts[form, "accepted"] += 1
    return counts


def _forms() -> dict[str, tuple[list[str], Callable[[str], object]]]:
    specs = [spec_from_config(parse_pbtxt(text, "config.pbtxt"), "m") for text in ALL]
    jsons = [config_to_json(config_from_spec(spec)) for spec in specs]
    return {
        "pbtxt": (list(ALL), lambda text: spec_from_config(parse_pbtxt(text, "config.pbtxt"), "m")),
        "toml": ([TOML], lambda text: spec_from_config(parse_model_toml(text, "model.toml"), "m")),
        "json": (jsons, lambda text: spec_from_json(text, "m")),
    }
