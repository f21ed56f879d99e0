"""`python -m headrace.bench.engine.peer_embeddings FOLDER LENGTHS SEED`: transformers' embedding speed, as JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import torch
from transformers import AutoModel, AutoTokenizer

from headrace.bench.engine.embeddings import measure_speeds


def main(folder: str, prompts: str, seed: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def embed(inputs: list[str]) -> int:
        """Embed as in all-MiniLM's model card: padded to the longest, mean of the tokens, scaled to length 1."""
        batch = tokenizer(inputs, padding=True, truncation=True, return_tensors="pt")
        mask = batch["attention_mask"]
        states = model(**batch).last_hidden_state
        means = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        vectors = torch.nn.functional.normalize(means, dim=1)
        vectors.tolist()
        return int(mask.sum())

    print(json.dumps({batch: asdict(speed) for batch, speed in measure_speeds(embed, prompts, seed).items()}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
