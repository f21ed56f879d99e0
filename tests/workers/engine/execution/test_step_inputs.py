"""Inputs of a step, as they follow from its batch."""

from __future__ import annotations

from tests.support.scheduler_driver import make_scheduler, make_sequence
from workers.engine.execution.step_inputs import StepInputs
from workers.engine.scheduling.scheduled_batch import ScheduledBatch
from workers.engine.scheduling.scheduler import Scheduler

DRAWN = 7


def rows(batch: ScheduledBatch) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return the inputs of each row, and the rows whose logits are computed."""
    inputs = StepInputs.from_batch(batch)
    assert [tuple(span) for span in inputs.spans] == [
        (inputs.sequences.tolist().index(number), item.num_rows, item.sequence.num_computed_tokens)
        for number, item in enumerate(batch.items)
    ]
    for item, table in zip(batch.items, inputs.block_tables.tolist(), strict=True):
        blocks = item.sequence.block_table.tolist()
        assert table == blocks + [0] * (len(table) - len(blocks))
    assert inputs.samples_each_row == batch.decodes
    columns = (inputs.tokens, inputs.positions, inputs.sequences, inputs.sample_rows)
    first, second, third, fourth = (column.tolist() for column in columns)
    return first, second, third, fourth


def end(scheduler: Scheduler, batch: ScheduledBatch) -> None:
    scheduler.advance(batch)
    for sequence in batch.sampling:
        sequence.tokens.append(DRAWN)


def test_inputs_of_prompts_answers_and_drafts() -> None:
    scheduler = make_scheduler(budget=8)
    for arrival, count in enumerate((2, 1, 9)):
        sequence = make_sequence(arrival, count)
        sequence.tokens = list(range(10 * arrival, 10 * arrival + count))
        scheduler.add(sequence)
    batch = scheduler.schedule()
    chunk = [20, 21, 22, 23, 24]
    assert rows(batch) == ([0, 1, 10, *chunk], [0, 1, 0, *range(5)], [0, 0, 1, *[2] * 5], [1, 2])
    end(scheduler, batch)
    batch = scheduler.schedule()
    rest = [25, 26, 27, 28]
    assert rows(batch) == ([DRAWN, DRAWN, *rest], [2, 1, *range(5, 9)], [0, 1, *[2] * 4], [0, 1, 5])
    end(scheduler, batch)
    batch = scheduler.schedule()
    assert batch.decodes
    assert rows(batch) == ([DRAWN] * 3, [3, 2, 9], [0, 1, 2], [0, 1, 2])
    drafted = scheduler.add_drafts(batch, {batch.items[0].sequence: (5, 6)})
    assert rows(drafted) == ([DRAWN, 5, 6, DRAWN, DRAWN], [3, 4, 5, 2, 9], [0, 0, 0, 1, 2], [0, 3, 4, 1, 2])
