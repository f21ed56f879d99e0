"""`python -m tests.support.portable_answers FLAGS FOLDER …`: answers with kernels of these flags, as JSON."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch

from shared.protocol import SamplingParams, encode
from tests.support.engine_driver import load
from workers.engine.interface import EngineRequest
from workers.engine.kernels import select
from workers.engine.kernels.build import load_library
from workers.engine.sampling.watermark import GreenListMark, GumbelMark

ADAPTERS = "adapters"
PROMPT = tuple(b"a river runs to the mill, and the mill ")
COMMON = SamplingParams(temperature=1.0, seed=4, max_tokens=24, logprobs=5, ignore_eos=True)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"prompt_logprobs": 3},
    "top-p": {"top_p": 0.9, "temperature": 0.7},
    "top-k": {"top_k": 20, "min_p": 0.02, "n": 2},
    "typical": {"typical_p": 0.8, "temperature": 1.3},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.3},
    "watermark": {"watermark": True, "logit_bias": {65: 1.5}},
}


def answers(folder: Path, **settings: Any) -> list[str]:
    """Return all that an engine answers, with the bits of its log-probabilities, and its fingerprint.

    A folder may have LoRA adapters in its folder ADAPTERS.
    """
    adapters = folder / ADAPTERS
    lora = {"lora_dir": adapters} if adapters.is_dir() else {}
    engine = load(folder, device="cpu", **lora, **settings)
    for name, given in KINDS.items():
        engine.add(EngineRequest(name, PROMPT, msgspec.structs.replace(COMMON, **given)))
    if engine.adapters is not None:
        for path in adapters.iterdir():
            engine.add(EngineRequest(path.name, PROMPT, COMMON, adapter=engine.adapters.load(path.name)))
    found = [engine.fingerprint]
    while engine.has_work():
        for output in engine.step():
            assert output.error is None
            found += [f"{output.job_id} {encode(token).decode()}" for token in (*output.prompt, *output.tokens)]
    return sorted(found)


def all_answers(folders: list[Path]) -> dict[str, Any]:
    """Return the answers of each model, and those of the first one quantized and with the other watermark."""
    found = {folder.name: answers(folder, watermark=GumbelMark(5)) for folder in folders}
    for quantization in ("int8", "int4"):
        found[quantization] = answers(folders[0], quantization=quantization, watermark=GreenListMark(5))
    return found


def main(flags: list[str], folders: list[Path]) -> None:
    select.load_library = partial(load_library, extra_flags=flags)  # type: ignore[assignment]  # only here
    found = {"capability": torch.backends.cpu.get_cpu_capability(), "answers": all_answers(folders)}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1].split(), [Path(folder) for folder in sys.argv[2:]])
