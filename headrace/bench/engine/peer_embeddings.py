"""`python -m headrace.bench.engine.peer_embeddings FOLDER LENGTHS SEED`: transformers' speed at embedding, as
JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import torch
from transformers import AutoModel, AutoTokenizer

from headrace.bench.engine.embeddings import speeds


def main(folder: str, prompts: str, seed: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def embed(inputs: list[str]) -> int:
        """As all-MiniLM's own card does it: padded to the longest, the mean of each input's tokens, of length 1."""
        batch = tokenizer(inputs, padding=True, truncation=True, return_tensors="pt")
        mask = batch["attention_mask"]
        states = model(**batch).last_hidden_state
        means = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        vectors = torch.nn.functional.normalize(means, dim=1)
        vectors.tolist()
        return int(mask.sum())

    print(json.dumps({batch: asdict(speed) for batch, speed in speeds(embed, prompts, seed).items()}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
