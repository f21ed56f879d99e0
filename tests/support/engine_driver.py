"""Driver that runs an engine until its work is done and collects answers by request and choice."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.errors import HeadraceError
from shared.protocol import FinishReason, SamplingParams, Token
from workers.engine.config import EngineConfig
from workers.engine.engine import Engine
from workers.engine.interface import EngineRequest
from workers.engine.waits import EngineWaits

GREEDY = SamplingParams(temperature=0.0, max_tokens=24)


@dataclass
class Answers:
    tokens: dict[tuple[str, int], list[Token]] = field(default_factory=lambda: defaultdict(list))
    errors: dict[str, HeadraceError] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    waits: dict[str, EngineWaits] = field(default_factory=dict)

    def ids(self, job_id: str, choice: int = 0) -> list[int]:
        return [token.id for token in self.tokens[job_id, choice]]

    def text(self, job_id: str, choice: int = 0) -> str:
        return "".join(token.text for token in self.tokens[job_id, choice])

    def reason(self, job_id: str, choice: int = 0) -> FinishReason | None:
        return self.tokens[job_id, choice][-1].finish_reason


def load(folder: Path, **settings: Any) -> Engine:
    """Return an engine that computes one token of each sequence per step, unless the settings say otherwise."""
    defaults = {"num_kv_blocks": 256, "max_num_seqs": 32, "speculation": "off"}  # drafts depend on measured times
    return Engine.load(EngineConfig(folder, **{**defaults, **settings}))


def step(engine: Engine, answers: Answers) -> None:
    for output in engine.step():
        for token in output.tokens:
            answers.tokens[output.job_id, token.choice].append(token)
        if output.waits is not None:
            answers.waits[output.job_id] = output.waits
        if output.error is not None:
            answers.errors[output.job_id] = output.error
        if output.finished:
            assert output.job_id not in answers.finished, "a request ended twice"
            answers.finished.add(output.job_id)


def drain(engine: Engine) -> Answers:
    answers = Answers()
    while engine.has_work():
        step(engine, answers)
    assert engine.stats().blocks_used == 0, "blocks were lost"
    assert engine.stats().running == engine.stats().waiting == 0
    return answers


def run(engine: Engine, prompts: list[list[int]], params: SamplingParams = GREEDY) -> list[list[int]]:
    """Run prompts to their end. Return the token ids of each one's first choice."""
    for index, prompt in enumerate(prompts):
        engine.add(EngineRequest(str(index), tuple(prompt), params))
    answers = drain(engine)
    assert answers.finished == {str(index) for index in range(len(prompts))}
    return [answers.ids(str(index)) for index in range(len(prompts))]
