"""CUDA graphs of whole steps, one for each of a few numbers of rows; a step is padded to the next of them.

One launch replaces the hundreds of a step, which cost the CPU more time than they cost the GPU. It knows nothing of
sequences: a row that pads is the first of a sequence of its own, in a block that nobody else has.
"""

from __future__ import annotations

import bisect
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from workers.engine.execution.step_inputs import StepInputs

_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # rows: larger steps keep a GPU busy
Forward = Callable[[StepInputs], Tensor]


def graph_sizes(max_rows: int, *, invariant: bool) -> tuple[int, ...]:
    """The rows of each graph, where a step has at most `max_rows`.

    Args:
        invariant: whether all steps are computed alike, as the largest: then a row has the same bits in any batch.
    """
    if invariant:
        return (max(max_rows, _SIZES[-1]),)
    largest = (max_rows,) if max_rows <= _SIZES[-1] else ()
    return tuple(size for size in _SIZES if size < max_rows) + largest


class StepGraphs:
    """Recorded when it is made.

    Args:
        forward: computes the logits of a step on the device, and must not wait for it.
        sizes: rows of each graph, rising.
        max_num_seqs: most sequences of a step.
        table_width: most blocks of a sequence.
        spare_block: the block that padding may write to.
    """

    def __init__(
        self,
        forward: Forward,
        sizes: tuple[int, ...],
        *,
        max_num_seqs: int,
        table_width: int,
        spare_block: int,
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self._forward = forward
        self._sizes = sizes
        self._padding = max_num_seqs  # its row of the tables
        self._tables = torch.zeros(max_num_seqs + 1, table_width, dtype=torch.int64, device=device)
        self._tables[self._padding] = spare_block
        self._logits = torch.empty(max_num_seqs, vocab_size, dtype=torch.float32, device=device)
        # tokens, positions, sequences and rows to look at, for each size
        self._inputs = {size: self._pad(torch.zeros(3, 0), size).to(device) for size in sizes}
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        with _uncollected():
            for size in reversed(sizes):  # the others fit into the memory of the largest
                self._graphs[size] = self._record(size)

    @property
    def max_rows(self) -> int:
        return self._sizes[-1]

    def run(self, step: StepInputs) -> Tensor:
        """Logits [R, vocab] float32 of a step on the CPU; valid until the next."""
        size = self._sizes[bisect.bisect_left(self._sizes, len(step.tokens))]
        inputs = self._inputs[size]
        rows = self._pad(torch.stack((step.tokens, step.positions, step.sequences)), size)
        sequences, width = step.block_tables.shape
        self._tables[:sequences, :width].copy_(step.block_tables, non_blocking=True)
        parts = []
        for looked_at in torch.split(step.sample_rows, self._places(size)):
            rows[3, : len(looked_at)] = looked_at
            inputs.copy_(rows, non_blocking=True)
            self._graphs[size].replay()
            parts.append(self._logits[: len(looked_at)])
            if len(looked_at) < len(step.sample_rows):  # a prompt is scored: the same again, to look at the rest
                parts[-1] = parts[-1].clone()
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _places(self, size: int) -> int:
        """How many rows of a step are looked at at once."""
        return min(size, self._padding)

    def _pad(self, rows: Tensor, size: int) -> Tensor:
        padded = torch.zeros(4, size, dtype=torch.int64)
        padded[2] = self._padding
        padded[:3, : rows.shape[1]] = rows
        return padded

    def _record(self, size: int) -> torch.cuda.CUDAGraph:
        self._compute(size)  # what is made at first use cannot be recorded
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            self._compute(size)
        return graph

    def _compute(self, size: int) -> None:
        """The logits of the inputs of `size`."""
        tokens, positions, sequences, looked_at = self._inputs[size]
        places = self._places(size)
        step = StepInputs(tokens, positions, sequences, self._tables, looked_at[:places], ())
        self._logits[:places] = self._forward(step)


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage is collected meanwhile: a graph in it could not be freed while another is recorded."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
