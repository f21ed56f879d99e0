"""The packaged all-MiniLM-L6-v2 as an ONNX graph that computes embeddings of token ids.

Run as a program (`python -m headrace.bench.predict.minilm FOLDER FILE`) it exports the model.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

from shared.models.model_store import MINILM, ModelRepository
from shared.runtime.shared_cache import make_once
from shared.settings import load

INPUTS = ("input_ids", "attention_mask")  # INT64, of batch and tokens
OUTPUT = "sentence_embedding"  # FP32, normalized, of batch and 384
OPSET = 18
REVISION = 1  # of the graph in the cache


def minilm_onnx() -> Path:
    """Return the file of the graph, exported into the user's cache when first used."""
    settings = load({"model": MINILM.name}).settings
    weights = ModelRepository(settings).folder()
    target = settings.cache_dir / "models" / f"{MINILM.name}-{REVISION}.onnx"

    def make(folder: Path) -> Path:
        file = folder / "model.onnx"
        # in a process of its own: torch and transformers stay out of this one
        subprocess.run([sys.executable, "-m", __name__, weights, file], check=True, stdout=subprocess.DEVNULL)
        return file

    make_once(target, make)
    return target


def export(weights: Path, file: Path) -> None:
    """Export transformers' model with mean pooling and normalization."""
    import torch
    from transformers import AutoModel

    class Embedder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(weights, attn_implementation="eager", dtype=torch.float32)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            states = self.model(input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).float()
            mean = (states * mask).sum(1) / mask.sum(1)
            return torch.nn.functional.normalize(mean)

    example = torch.ones(2, 5, dtype=torch.int64)
    axes = {0: "batch", 1: "tokens"}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the newer exporter needs a package more
        torch.onnx.export(
            Embedder().eval(),
            (example, example),
            file,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_axes={**dict.fromkeys(INPUTS, axes), OUTPUT: {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
        )


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]))
