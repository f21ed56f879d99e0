"""CUDA graphs of whole steps, one for each of a few numbers of rows; a step is padded to the next one.

A single launch replaces the hundreds of a step, which take more CPU time than GPU time. A padding row is the first
row of an additional sequence, in a block that no other sequence uses.
"""

from __future__ import annotations

import bisect
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from workers.engine.execution.step_inputs import StepInputs

_GRAPH_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # larger steps keep a GPU busy
Forward = Callable[[StepInputs], Tensor]


def graph_sizes(max_rows: int, *, invariant: bool) -> tuple[int, ...]:
    """Return the number of rows of each graph, for steps of at most `max_rows`.

    Args:
        invariant: use one graph, of the largest size, for all steps: then a row has the same bits in any batch.
    """
    if invariant:
        return (max(max_rows, _GRAPH_ROWS[-1]),)
    largest = (max_rows,) if max_rows <= _GRAPH_ROWS[-1] else ()
    return tuple(size for size in _GRAPH_ROWS if size < max_rows) + largest


class StepGraphs:
    """CUDA graphs for all sizes of steps, recorded by the constructor.

    Args:
        forward: computes the logits of a step on the device, without waiting for the device.
        sizes: rows of each graph, ascending.
        max_num_seqs: most sequences of a step.
        table_width: most blocks of a sequence.
        spare_block: the block that padding rows write to.
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
        self._padding = max_num_seqs  # row of the block tables for padding
        self._tables = torch.zeros(max_num_seqs + 1, table_width, dtype=torch.int64, device=device)
        self._tables[self._padding] = spare_block
        self._logits = torch.empty(max_num_seqs, vocab_size, dtype=torch.float32, device=device)
        # tokens, positions, sequences and sample rows of each size
        self._inputs = {size: self._pad(torch.zeros(3, 0), size).to(device) for size in sizes}
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        with _gc_paused():
            for size in reversed(sizes):  # smaller graphs fit into the memory of the largest
                self._graphs[size] = self._record(size)

    @property
    def max_rows(self) -> int:
        return self._sizes[-1]

    def run(self, step: StepInputs) -> Tensor:
        """Return the logits [R, vocab] float32 of a step given on the CPU; they are valid until the next step."""
        size = self._sizes[bisect.bisect_left(self._sizes, len(step.tokens))]
        inputs = self._inputs[size]
        rows = self._pad(torch.stack((step.tokens, step.positions, step.sequences)), size)
        sequences, width = step.block_tables.shape
        self._tables[:sequences, :width].copy_(step.block_tables, non_blocking=True)
        logits = []
        for part in torch.split(step.sample_rows, self._max_sample_rows(size)):
            rows[3, : len(part)] = part
            inputs.copy_(rows, non_blocking=True)
            self._graphs[size].replay()
            logits.append(self._logits[: len(part)])
            if len(part) < len(step.sample_rows):  # scoring a prompt: replay for the remaining rows
                logits[-1] = logits[-1].clone()
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def _max_sample_rows(self, size: int) -> int:
        """Return for how many rows one replay computes logits."""
        return min(size, self._padding)

    def _pad(self, rows: Tensor, size: int) -> Tensor:
        padded = torch.zeros(4, size, dtype=torch.int64)
        padded[2] = self._padding
        padded[:3, : rows.shape[1]] = rows
        return padded

    def _record(self, size: int) -> torch.cuda.CUDAGraph:
        self._compute(size)  # one-time initialization cannot be recorded
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            self._compute(size)
        return graph

    def _compute(self, size: int) -> None:
        """Compute the logits of the inputs of `size`."""
        tokens, positions, sequences, sample_rows = self._inputs[size]
        count = self._max_sample_rows(size)
        step = StepInputs(tokens, positions, sequences, self._tables, sample_rows[:count])
        self._logits[:count] = self._forward(step)


@contextmanager
def _gc_paused() -> Iterator[None]:
    """Disable garbage collection: a graph must not be freed while another one is recorded."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
