"""Speculator: it decides which tokens each row of a step drafts, and learns from what came of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from weakref import WeakSet

from shared.errors import HeadraceError
from workers.engine.scheduling.scheduled_batch import ScheduledBatch
from workers.engine.sequence import Sequence
from workers.engine.speculation.forced_tokens import ForcedTokenDrafter
from workers.engine.speculation.hit_rates import HitRates
from workers.engine.speculation.interface import Draft, Drafter
from workers.engine.speculation.look_schedule import LookSchedule
from workers.engine.speculation.step_costs import Costs
from workers.engine.stage import Stage
from workers.engine.stats import SpeculationStats

MAX_DRAFTING_SEQUENCES = 32  # with more, looking for drafts takes longer than they save
MAX_MODEL_SEQUENCES = 4  # with more, a draft model would run for each in turn
PROBE_STEPS = 64  # after so many steps, a draft model that did not pay is asked again
PROBE_TOKENS = 2
COST_MEMORY = 0.8
MIN_GAIN = 1.06  # expected tokens per second with drafts, over those without: single measurements err


@dataclass(frozen=True)
class Proposal:
    """A draft after the first `num_tokens` of a sequence.

    Attributes:
        chances: for each place, the probability that all tokens up to there are right.
        certain: number of its first tokens that the grammar forces; they say nothing about the drafter.
    """

    sequence: Sequence
    drafter: Drafter
    draft: Draft
    chances: tuple[float, ...]
    num_tokens: int
    certain: int = 0

    @property
    def expected(self) -> float:
        """Expected number of right tokens, up to the first wrong one."""
        return sum(self.chances)


class Speculator:
    """Chooses drafts for each step.

    Every drafter is asked in every step that only generates, as far as `LookSchedule` allows, and its draft is
    compared with the next tokens, used or not: so a drafter that did not pay is noticed when it would.

    The text that a grammar forces is drafted too, also as the beginning of another draft.

    Args:
        most: maximum drafted tokens of one sequence in a step.
        model: a drafter that takes much time, and so is asked only if its drafts are expected to pay.
        clock: returns seconds.
    """

    def __init__(
        self,
        drafters: Ordered[Drafter],
        costs: Costs,
        most: int,
        clock: Callable[[], float] = time.perf_counter,
        *,
        model: Drafter | None = None,
    ) -> None:
        self._drafters = drafters
        self._forced = ForcedTokenDrafter()
        self._costs = costs
        self._most = most
        self._clock = clock
        self._model = model
        self._model_seconds: float | None = None  # of one token; None until it was asked
        self._drafting_seconds = 0.0  # of the model, in this step
        self._steps = 0
        self._is_wide = False  # the last batch has too many sequences
        self._rates = HitRates()
        self._looks = LookSchedule()
        self._failed: WeakSet[Sequence] = WeakSet()  # no drafts for them: a drafter has raised an exception
        self._proposals: list[Proposal] = []
        self._began: float | None = None  # of a step that only generates
        self._drafts = self._draft_tokens = 0
        self._accepted = [0] * most  # by place in the draft

    def propose(self, batch: ScheduledBatch) -> dict[Sequence, tuple[int, ...]]:
        """Return the drafts of a step's sequences; none for a step that computes prompts."""
        self._proposals, self._began, self._drafting_seconds = [], None, 0.0
        self._is_wide = len(batch.items) > MAX_DRAFTING_SEQUENCES
        if not batch.decodes:
            return {}
        self._began = self._clock()
        if self._is_wide:
            return {}
        self._steps += 1
        running = [item.sequence for item in batch.items if not item.sequence.ended]
        self._looks.begin()
        due = [self._looks.is_due(sequence) for sequence in running]
        best = [self._best(sequence, search=look) for sequence, look in zip(running, due, strict=True)]
        if self._model is not None and len(running) <= MAX_MODEL_SEQUENCES:
            best = [
                self._ask_model(self._model, sequence, proposal, len(batch.items))
                for sequence, proposal in zip(running, best, strict=True)
            ]
        drafts = self._cut([proposal for proposal in best if proposal is not None], len(batch.items))
        looked = [sequence for sequence, look in zip(running, due, strict=True) if look]
        spent = self._clock() - self._began - self._drafting_seconds
        self._looks.record(looked, drafts, spent, len(batch.items), self._costs.seconds(len(batch.items)))
        return drafts

    def learn(self, batch: ScheduledBatch) -> None:
        """Compare the drafts with the tokens that the step appended, and record its time."""
        for proposal in self._proposals:
            came = proposal.sequence.tokens[proposal.num_tokens :]
            self._rates.record(proposal.sequence, proposal.drafter.name, proposal.draft, came, proposal.certain)
        lengths = {proposal.sequence: proposal.num_tokens for proposal in self._proposals}
        for item in batch.items:
            if item.drafts:
                self._count(item.drafts, item.sequence.tokens[lengths[item.sequence] :])
        if self._began is not None:
            self._costs.record(batch.num_rows, self._clock() - self._began - self._drafting_seconds)
        self._proposals, self._began = [], None

    def remember(self, sequence: Sequence) -> None:
        """Learn from an answer that is complete, unless the batch is too wide for drafts."""
        for drafter in (*(() if self._is_wide else self._drafters), self._model):
            if drafter is not None:
                drafter.remember(sequence)

    def stats(self) -> SpeculationStats:
        return SpeculationStats(self._drafts, self._draft_tokens, tuple(self._accepted))

    def _best(self, sequence: Sequence, *, search: bool) -> Proposal | None:
        """Return the draft of which most tokens are expected to be right; without `search`, only forced tokens."""
        most = self._room(sequence)
        if not most or not (search or sequence.matcher is not None):
            return None
        drafters = self._drafters if search else ()
        try:
            with Stage("draft of an answer", run_id=sequence.job_id):
                forced = self._proposal(sequence, self._forced, most, None)
                found = [self._proposal(sequence, drafter, most, forced) for drafter in drafters]
        except HeadraceError:
            self._failed.add(sequence)
            return None
        proposals = [proposal for proposal in (forced, *found) if proposal is not None]
        self._proposals += proposals
        return max(proposals, key=lambda proposal: proposal.expected, default=None)

    def _room(self, sequence: Sequence) -> int:
        """Return how many tokens may be drafted: not the last one, which no other follows."""
        if sequence in self._failed:
            return 0
        return max(0, min(self._most, sequence.max_tokens - sequence.num_output_tokens - 1))

    def _ask_model(self, model: Drafter, sequence: Sequence, best: Proposal | None, rows: int) -> Proposal | None:
        """Return the model's draft if it is expected to be better than the best of the others."""
        most = self._room(sequence)
        length = min(most, max(self._model_length(sequence, best, rows, most), self._probe()))
        if not length:
            return best
        began = self._clock()
        try:
            with Stage("draft of an answer", run_id=sequence.job_id):
                proposal = self._proposal(sequence, model, length, None)
        except HeadraceError:
            self._failed.add(sequence)
            return best
        spent = self._clock() - began
        self._drafting_seconds += spent
        last = spent / length if self._model_seconds is None else self._model_seconds
        self._model_seconds = COST_MEMORY * last + (1 - COST_MEMORY) * spent / length
        if proposal is None:
            return best
        self._proposals.append(proposal)
        return proposal if best is None or proposal.expected > best.expected else best

    def _probe(self) -> int:
        return PROBE_TOKENS if self._steps % PROBE_STEPS == 1 else 0

    def _model_length(self, sequence: Sequence, best: Proposal | None, rows: int, most: int) -> int:
        """Return how many tokens of the draft model give the most tokens per second; 0 if it does not pay."""
        assert self._model is not None
        rate = self._rates.rate(sequence, self._model.name, self._model.name)
        others = 0 if best is None else len(best.chances)
        alone, with_others = self._costs.seconds(rows), self._costs.seconds(rows + others)
        if alone is None or with_others is None:
            return 0
        fastest = MIN_GAIN * rows / alone
        if best is not None:
            fastest = max(fastest, (rows + best.expected) / with_others)
        length, expected = 0, 0.0
        for place in range(1, most + 1):
            expected += rate**place
            seconds = (self._costs.seconds(rows + place) or alone) + place * (self._model_seconds or 0.0)
            if (rows + expected) / seconds > fastest:
                fastest, length = (rows + expected) / seconds, place
        return length

    def _proposal(
        self, sequence: Sequence, drafter: Drafter, most: int, forced: Proposal | None
    ) -> Proposal | None:
        """Return a drafter's draft, of which the tokens that are forced are as certain as those of `forced`."""
        draft = drafter.propose(sequence, most)
        if draft is None:
            return None
        certain, chances = 0, [1.0]
        if forced is not None:
            size = len(forced.draft.tokens)
            if draft.tokens[:size] == forced.draft.tokens:
                certain, chances = size, [1.0, *forced.chances]
            else:  # it contradicts the grammar, or goes less far
                chances = [0.0]
        rate = self._rates.rate(sequence, drafter.name, draft.kind)
        for _ in draft.tokens[certain:]:
            chances.append(chances[-1] * rate)
        return Proposal(sequence, drafter, draft, tuple(chances[1:]), sequence.num_tokens, certain)

    def _cut(self, proposals: list[Proposal], rows: int) -> dict[Sequence, tuple[int, ...]]:
        """Cut drafts to the tokens that make the step produce the most tokens per second."""
        alone = self._costs.seconds(rows)
        if alone is None:
            return {}
        places = [(chance, number) for number, proposal in enumerate(proposals) for chance in proposal.chances]
        places.sort(key=lambda place: -place[0])  # stable, so that each draft's places stay in order
        produced, fastest, taken = float(rows), MIN_GAIN * rows / alone, 0
        for count, (chance, _) in enumerate(places, 1):
            produced += chance
            seconds = self._costs.seconds(rows + count)
            if seconds is not None and produced / seconds > fastest:
                fastest, taken = produced / seconds, count
        lengths: dict[int, int] = {}
        for _, number in places[:taken]:
            lengths[number] = lengths.get(number, 0) + 1
        return {proposals[n].sequence: proposals[n].draft.tokens[:length] for n, length in lengths.items()}

    def _count(self, drafts: tuple[int, ...], came: list[int]) -> None:
        self._drafts += 1
        self._draft_tokens += len(drafts)
        for place, (drafted, token) in enumerate(zip(drafts, came, strict=False)):
            if drafted != token:
                return
            self._accepted[place] += 1
