"""Cost of a token beside its model, by part, and as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

ROWS = "rows of logits"


@dataclass(frozen=True)
class Cost:
    """Microseconds per token.

    Attributes:
        parts: CPU by part of the engine's thread, and of the event loop, which writes.
        rest: CPU of all other threads of the worker.
        idle: from the end of the model's step to its next one: while a device would wait.
        redis: CPU of the embedded Valkey.
        tokens_per_append: how many tokens of one request were written together.
    """

    parts: dict[str, float]
    rest: float
    idle: float
    redis: float
    tokens_per_append: float

    @property
    def total(self) -> float:
        return sum(self.parts.values()) + self.rest

    @property
    def beside_rows(self) -> float:
        """The total without the passes over rows of logits."""
        return self.total - self.parts.get(ROWS, 0.0)


@dataclass(frozen=True)
class NullModel:
    """Cost of a token with each kind of sampling."""

    sequences: int
    vocabulary: int
    costs: dict[str, Cost]

    def as_dict(self) -> dict[str, Any]:
        totals = {name: {"total": cost.total, "beside_rows": cost.beside_rows} for name, cost in self.costs.items()}
        return {**asdict(self), "totals": totals}

    def table(self) -> Table:
        title = f"CPU µs per token, {self.sequences} sequences, {self.vocabulary:,} logits in a row"
        table = Table("part", *self.costs, title=title, title_justify="left")
        costs = list(self.costs.values())
        for part in costs[0].parts:
            table.add_row(part, *(f"{cost.parts.get(part, 0.0):.2f}" for cost in costs))
        table.add_row("other threads", *(f"{cost.rest:.2f}" for cost in costs))
        table.add_section()
        table.add_row("total", *(f"{cost.total:.1f}" for cost in costs))
        table.add_row(f"total without {ROWS}", *(f"{cost.beside_rows:.1f}" for cost in costs))
        table.add_section()
        table.add_row("Valkey", *(f"{cost.redis:.1f}" for cost in costs))
        table.add_row("wall time between steps", *(f"{cost.idle:.1f}" for cost in costs))
        table.add_row("tokens per append", *(f"{cost.tokens_per_append:.2f}" for cost in costs))
        return table
