"""Loads of the routing benchmark: endless, seeded conversations; lengths are in tokens of the simulated engine."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from headrace.bench.harness.workload import WORDS, Lengths
from headrace.bench.routing.simulated_engine import TOKEN_BYTES

UNIFORM_PROMPT, UNIFORM_ANSWER = Lengths(192, 320), Lengths(48, 80)
SKEWED_PROMPT, SKEWED_ANSWER = Lengths(1, 2048, 256), Lengths(1, 512, 64)
TURNS = 8
INSTRUCTIONS, INSTRUCTION_TOKENS = 8, 1024  # the sessions share so many system prompts
QUESTION, ANSWER = Lengths(256, 768), Lengths(32, 96)


@dataclass(frozen=True)
class Turn:
    question: str
    answer_tokens: int


@dataclass(frozen=True)
class Session:
    """Conversation of one user, who sends a turn when the answer to the turn before is complete."""

    user: str
    turns: tuple[Turn, ...]
    instructions: str = ""


def uniform(seed: int) -> Iterator[Session]:
    """Yield sessions of one turn, all of about the same length."""
    return _single_turns(seed, UNIFORM_PROMPT, UNIFORM_ANSWER)


def skewed(seed: int) -> Iterator[Session]:
    """Yield sessions of one turn with exponentially distributed lengths."""
    return _single_turns(seed, SKEWED_PROMPT, SKEWED_ANSWER)


def multi_turn(seed: int) -> Iterator[Session]:
    """Yield sessions of TURNS turns, each of which sends all turns before it again."""
    chance = random.Random(seed)  # noqa: S311  a benchmark must be repeatable
    instructions = [_text(chance, INSTRUCTION_TOKENS) for _ in range(INSTRUCTIONS)]
    while True:
        turns = tuple(_turn(chance, QUESTION, ANSWER) for _ in range(TURNS))
        yield Session(_user(chance), turns, chance.choice(instructions))


LOADS: dict[str, Callable[[int], Iterator[Session]]] = {
    "uniform": uniform,
    "skewed": skewed,
    "multi-turn": multi_turn,
}


def _single_turns(seed: int, prompt: Lengths, answer: Lengths) -> Iterator[Session]:
    chance = random.Random(seed)  # noqa: S311  a benchmark must be repeatable
    while True:
        yield Session(_user(chance), (_turn(chance, prompt, answer),))


def _turn(chance: random.Random, question: Lengths, answer: Lengths) -> Turn:
    return Turn(_text(chance, question.draw(chance)), answer.draw(chance))


def _user(chance: random.Random) -> str:
    return f"user-{chance.randrange(2**32):08x}"


def _text(chance: random.Random, tokens: int) -> str:
    """Return words that are `tokens` long together."""
    length, shortest = tokens * TOKEN_BYTES, len("a ")
    return " ".join(chance.choices(WORDS, k=length // shortest + 1))[:length]
