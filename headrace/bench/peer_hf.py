"""`python -m headrace.bench.peer_hf MODEL SEED`: transformers' static batches on the mix, as JSON on stdout."""

from __future__ import annotations

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from headrace.bench.mix import WorkItem, make_mix
from shared.config import load
from shared.repository import ModelRepository

BATCH = 16


def generate(model: torch.nn.Module, tokenizer: object, items: list[WorkItem]) -> None:
    """One batch: padded on the left, run until its longest answer is done, as a static batch is."""
    chats = [[{"role": "user", "content": item.prompt}] for item in items]
    inputs = tokenizer.apply_chat_template(  # type: ignore[attr-defined]
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    longest = max(item.output_tokens for item in items)
    model.generate(**inputs, min_new_tokens=longest, max_new_tokens=longest, do_sample=False)  # type: ignore[operator]


def main(model_spec: str, seed: int) -> None:
    folder = ModelRepository(load({"model": model_spec}).settings).folder()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    generate(model, tokenizer, [WorkItem("warm up", 2, 4)])
    items = make_mix(seed)
    begin = time.perf_counter()
    for start in range(0, len(items), BATCH):
        generate(model, tokenizer, items[start : start + BATCH])
    seconds = time.perf_counter() - begin
    tokens = sum(item.output_tokens for item in items)
    print(json.dumps({"tokens": tokens, "rate": tokens / seconds}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
