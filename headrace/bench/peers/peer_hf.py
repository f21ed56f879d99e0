"""`python -m headrace.bench.peers.peer_hf FOLDER SEED CONCURRENCY`: static batches of transformers on the mix.

It uses the device and the dtype that the settings give Headrace's engine, and prints its figures as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from headrace.bench.harness.workload import WorkItem, peer_mix
from shared.settings import load
from workers.engine.config import EngineConfig

BATCH_SIZE = 16


def generate(model: torch.nn.Module, tokenizer: object, items: list[WorkItem]) -> None:
    """Run one static batch: padded on the left, until its longest answer is complete."""
    chats = [[{"role": "user", "content": item.prompt}] for item in items]
    inputs = tokenizer.apply_chat_template(  # type: ignore[attr-defined]
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    ).to(model.device)
    longest = max(item.output_tokens for item in items)
    model.generate(**inputs, min_new_tokens=longest, max_new_tokens=longest, do_sample=False)  # type: ignore[operator]


def main(folder: str, seed: int, concurrency: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    config = EngineConfig.from_settings(load().settings, Path(folder))
    device = config.torch_device()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=config.torch_dtype(device, torch.float32)).to(device)
    generate(model, tokenizer, [WorkItem("warm up", 2, 4)])
    items, batch = peer_mix(seed, concurrency), min(BATCH_SIZE, concurrency)
    begin = time.perf_counter()
    for start in range(0, len(items), batch):
        generate(model, tokenizer, items[start : start + batch])
    seconds = time.perf_counter() - begin
    tokens = sum(item.output_tokens for item in items)
    print(json.dumps({"tokens": tokens, "rate": tokens / seconds}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
