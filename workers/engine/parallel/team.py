"""Rank 0's side of tensor parallelism: it starts the other ranks, agrees with them, and runs steps with them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from shared.errors import ConfigError
from workers.engine.execution.step_inputs import StepInputs
from workers.engine.interface import EngineLost
from workers.engine.model_runner import ModelRunner
from workers.engine.models.decoder import never
from workers.engine.parallel.group import DistributedGroup
from workers.engine.parallel.messages import Load, Refused, Start
from workers.engine.parallel.rank_process import Loss, RankProcess
from workers.engine.parallel.step_message import Copies, Step

REASON_TIMEOUT_S = 1.0  # from a failed exchange to the news that a process has ended

Message = TypeVar("Message")


class Team:
    """The other ranks of an engine. They end with this object.

    Raises EngineLost if they cannot be started.

    Args:
        starts: the first message for each of them, in order, from rank 1 on.
    """

    def __init__(self, starts: list[Start]) -> None:
        self._loss = Loss()
        self._processes = [RankProcess(start.rank, self._loss) for start in starts]
        self.end = weakref.finalize(self, _end, self._processes)
        try:
            for process, start in zip(self._processes, starts, strict=True):
                process.check_started()
                process.channel.send(start)
        except OSError as error:
            self.end()
            raise EngineLost(f"a rank cannot be started: {error}") from error

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    @property
    def loss(self) -> str | None:
        """Why the team cannot compute any more; None while it can."""
        return self._loss.reason

    def wake_with(self, wake: Callable[[], None]) -> None:
        """Call `wake`, from another thread, when a rank ends."""
        self._loss.wake = wake

    def tell(self, message: Load) -> None:
        for process in self._processes:
            process.channel.send(message)

    def ask(self, kind: type[Message]) -> list[Message]:
        """Return the next message of each rank. Raises ConfigError for a refusal, EngineLost for an end."""
        return [self._receive(process, kind) for process in self._processes]

    def _receive(self, process: RankProcess, kind: type[Message]) -> Message:
        try:
            found = process.channel.receive(kind)
        except (EOFError, OSError) as error:
            self._loss.known.wait(REASON_TIMEOUT_S)
            raise EngineLost(f"a rank did not start: {self.loss or error}") from error
        if isinstance(found, Refused):
            raise ConfigError(found.message, param=found.param)
        return found

    def begin(self, step: Step) -> None:
        """Have the other ranks compute a step. Raises OSError."""
        data = step.encode()
        for process in self._processes:
            process.channel.send_bytes(data)

    def lost(self, error: Exception | None = None) -> EngineLost:
        """Return the error that ends the engine, and end the other ranks: they may be within a step."""
        if self.loss is None:
            self._loss.known.wait(REASON_TIMEOUT_S)
        reason = self.loss or f"a step failed: {type(error).__name__}"
        self._loss.report(reason)
        self.end()
        return EngineLost(f"the engine lost its ranks: {reason}")


def _end(processes: list[RankProcess]) -> None:
    for process in processes:
        process.end()


class TeamRunner(ModelRunner):
    """Runner of rank 0's part, which has the other ranks compute each step too."""

    def __init__(self, team: Team, group: DistributedGroup, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._team = team
        self._group = group

    @property
    def is_lost(self) -> bool:
        return self._team.loss is not None

    def wake_with(self, wake: Callable[[], None]) -> None:
        self._team.wake_with(wake)

    def check(self) -> None:
        if self.is_lost:
            raise self._team.lost()

    @torch.inference_mode()
    def compute(
        self, copies: Copies, step: StepInputs, interrupted: Callable[[], bool] | None = None
    ) -> Tensor | None:
        """See `ModelRunner.compute`. Raises EngineLost if any rank fails: the others may wait for it.

        An interrupted step ends after its first layer at the earliest, when all ranks have heard of it.
        """
        self.check()
        try:
            self._team.begin(Step(copies, step))
            self._group.begin_step(interrupted or never)
            return super().compute(copies, step, self._group.stops)
        except Exception as error:
            raise self._team.lost(error) from error
