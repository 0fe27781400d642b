"""From ways to a plan in a large fleet: choose, place, hold the tiers in order, then look near it for a better one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from solvers.deadline import (
    CLOSER_OF_REST,
    FITTED_UNTIL,
    HELD_PRICES_LEAST,
    HELD_PRICES_UNTIL,
    WHOLE_UNTIL,
    Turns,
)
from solvers.errors import SOLVER_FAULTS
from solvers.planner.menus.compose import Enough
from solvers.planner.placing.desk import Desk
from solvers.planner.placing.places import lost_counts, place
from solvers.planner.placing.tiers import is_clearly_better, is_taken, keeps_held, lacks, lacks_clearly
from solvers.planner.pools.cells import Cells, Floats
from solvers.planner.pools.tally import Worth, best_of
from solvers.planner.wide.beside import Beside
from solvers.planner.wide.branches import branched
from solvers.planner.wide.dive import MOST_OPEN, Dived, dived
from solvers.planner.wide.fit import Fitter, Seated, Settled
from solvers.planner.wide.whole import choose, choose_soon, improve
from solvers.planner.wide.wide import Wide

MOST_CHOICES = 3  # times that ways are chosen while some of their replicas find no place
MOST_IMPROVED, WORK_IMPROVED = 6, 100  # times that a plan's ways are chosen again, and those times its services
MOST_ROUNDS = 4  # times that some of few services are planned in full beside ways
MOST_TURNS = 4  # times in turn that plans of few services are told apart, and some fitted
MOST_CHOSEN_IN = 3  # branches, those of the least bounds, in which ways are chosen
LEAST_TURNS = 4  # pricings beside held tiers that a dive begins with
DIVE_TURNS, LEAST_DIVE_TURNS = 12, 8  # pricings that take about as long as a dive and its fit, and without pricings
LEAST_IMPROVED = 0.1  # of the gap asked, what one more time has to bring


@dataclass(frozen=True, slots=True, kw_only=True)
class Chooser:
    """What a choice of ways is judged by; ``gap`` is the relative gap asked of it.

    ``raise_bound`` is told a plan whose bound, once the tiers are held as it holds them, may be the best so far.
    ``is_done`` ends the work: a plan is near enough to its bound, or time is over. ``told_fault`` is told what a
    stage failed with.
    """

    desk: Desk
    cells: Cells
    wide: Wide
    gap: float
    placed: Callable[[Floats], Worth]
    seated: Seated
    is_done: Callable[[Worth], bool]
    raise_bound: Callable[[Worth], None]
    told_fault: Callable[[Exception], None]
    settled: Settled
    relaxed_beside: Callable[[], Floats]

    def run(self, best: Worth) -> Worth:
        """Return the best plan found, no worse than the one at hand."""
        if not (self.wide.is_short and self.wide.has_many):
            best = self._tried(self._chosen, best)
        if lacks(best, self.gap) and not self.is_done(best):
            best = self._tried(self._in_order, best)
        if lacks(best, self.gap):
            return self._short(best)
        if self.is_done(best):
            return best
        best = self._tried(self._improved, best)
        return best if self.is_done(best) or self.wide.has_many else self._tried(self._beside, best)

    def _beside(self, best: Worth) -> Worth:
        """Plan services whose pairs depend on places in full, one at a time, beside the ways of all others."""
        for _ in range(MOST_ROUNDS):
            beside, before = Beside.of(self.wide, best), best
            for service in beside.in_turn():
                for replicas in () if self.is_done(best) else beside.chosen(service):
                    best = self._better(best, self.placed(replicas))
                if best is not before:
                    break
            if best is before or self.is_done(best):
                break
        return best

    def _short(self, best: Worth) -> Worth:
        """Fit a few services at a time and tell plans apart; where they are few in turn, while telling apart helps.

        Fits say sooner what the best plan is, so they come first.
        """
        for turn in range(1 if self.wide.has_many else MOST_TURNS):
            best = best if self.is_done(best) else self._tried(self._fitted, best)
            before = best.objective_usd_per_hour
            best = best if self.is_done(best) else self._tried(self._branched, best)
            gained = before - best.objective_usd_per_hour
            if self.is_done(best) or (turn and gained < LEAST_IMPROVED * self.gap * before):
                break
        return best

    def _tried(self, stage: Callable[[Worth], Worth], best: Worth) -> Worth:
        """What a stage makes of a plan; the plan as it is where the stage fails."""
        try:
            return stage(best)
        except SOLVER_FAULTS as fault:
            self.told_fault(fault)
            return best

    def _chosen(self, best: Worth) -> Worth:
        """Take ways and place them; while some replica finds no place, choose again with less room where it should go.

        Groups of bays have room in sum that no single bay may have.
        """
        lost = None
        for _ in range(MOST_CHOICES):
            replicas = choose(self.wide, best, lost)
            best = self._better(best, found := self.placed(replicas))
            lost = lost_counts(self.cells, replicas, self.seated(self.cells, replicas))
            is_filled = found.short and self.wide.is_short  # from what is left; others are short of a place
            if self.is_done(found) or is_filled or not lost.any():
                break
        return best

    def _better(self, best: Worth, found: Worth) -> Worth:
        """The better of two plans, what tiers are held at kept once they are."""
        held = self.wide.held_usd_per_hour
        return (found if is_taken(found, best, held) else best) if len(held) else best_of([best, found])

    def _in_order(self, found: Worth) -> Worth:
        """Choose again among the plans that leave no tier but the last more short, which the bound is then of."""
        if self.desk.is_large and (lacks_clearly(found) or not self.wide.has_many):
            found = best_of([found, self.desk.greedy()])
        self.wide.hold(found, is_rough=self.wide.has_very_many)
        self._begin_beside()
        best = found
        if self.wide.has_many and not self.desk.crew.is_late():  # whatever comes of what takes longer
            best = self._best_beside(found, [*self._soon()])
        turns = self._priced(best)
        if not self.desk.crew.is_late():
            choose = partial(self._chosen_of_many, turns=turns) if self.wide.has_many else self._chosen
            best = self._tried(choose, best)
        if self._moves_tiers(best, found):
            self.wide.hold(best)
        self.raise_bound(best)
        if self.wide.has_many and not self.is_done(best):
            self._closer(best)
        return best

    def _begin_beside(self) -> None:
        """Price once where divisible replicas would be beside held tiers, and know the ways near these."""
        beside = self.wide.prices
        try:
            beside = self.relaxed_beside()
        except SOLVER_FAULTS as fault:  # those at hand will do, from further away
            self.told_fault(fault)
        self.wide.priced(beside)

    def _priced(self, found: Worth) -> Turns:
        """Price beside held tiers while a dive after one more turn would still end in time; on, where none would."""
        crew, is_rough = self.desk.crew, self.wide.has_very_many
        turns = Turns.of(crew.deadline)
        is_near = self._is_enough(found, max(HELD_PRICES_UNTIL[is_rough], turns.begun + HELD_PRICES_LEAST[is_rough]))

        def is_enough(bound: float) -> bool:
            turns.done += 1
            is_early = is_rough or turns.done <= LEAST_TURNS
            could_still, could_later = (turns.allow(n, FITTED_UNTIL) for n in (LEAST_DIVE_TURNS, DIVE_TURNS + 1))
            is_last = could_still and not (is_early or could_later)
            crew.was_late = crew.was_late or is_last
            return is_last or is_near(bound)

        self.wide.bound(is_enough)
        return turns

    def _closer(self, found: Worth) -> None:
        """Bound the plans that keep the tiers as this one does, now that it is known.

        Of very many services the choice before has taken most of the time.
        """
        passed = self.desk.crew.deadline.passed_share()
        until = passed + CLOSER_OF_REST * max(0.0, 1.0 - passed)
        self.wide.bound(self._is_enough(found, HELD_PRICES_UNTIL[True] if self.wide.has_very_many else until))
        self.raise_bound(found)

    def _is_enough(self, found: Worth, until: float = 1.0) -> Enough:
        """Tell of a bound whether the plan is near enough to it, or so much of the time is over."""
        value, is_late = found.objective_usd_per_hour, self.desk.crew.is_late
        return lambda bound: value - bound <= self.gap * abs(value) or is_late(until)

    def _chosen_of_many(self, best: Worth, turns: Turns) -> Worth:
        """Decide services one after another and plan the last few beside these; if no better, choose at once.

        Of very many services a dive takes long and comes second. Where time does not do for either, as the ``turns``
        of pricing tell, or neither is better, what is soon found has to do; of very many that was looked for before.
        """
        tried = list[Worth]()
        ways: list[Callable[[], Worth | None]] = [self._by_dive, lambda: self._at_once(best)]
        for way in ways[::-1] if self.wide.has_very_many else ways:
            found = None if self._is_late_for(turns) else way()
            if found is not None and self._better(best, found) is found:
                return found
            tried += [] if found is None else [found]
        if not (self.wide.has_very_many and self._is_late_for(turns)):
            tried += self._soon()
        return self._best_beside(best, tried)

    def _best_beside(self, best: Worth, tried: Sequence[Worth]) -> Worth:
        """The best of some plans: the order of the tiers but the last first, then what is open above the bound."""
        for found in tried:
            best = found if self._is_nearer(found, best) else best
        return best

    def _is_nearer(self, found: Worth, best: Worth) -> bool:
        """Tell whether a tier but the last is clearly less short, or none is more so and the bound beside it nearer."""
        for rank in sorted(best.lacking_usd_by_tier)[:-1]:
            if is_clearly_better(found, best, rank):
                return True
            if is_clearly_better(best, found, rank):
                return False
        found_usd, best_usd = (w.objective_usd_per_hour + self.wide.drift_usd_per_hour(w) for w in (found, best))
        return found_usd < best_usd

    def _is_late_for(self, turns: Turns) -> bool:
        """Tell whether neither a dive nor, of very many services, a choice at once would end in time."""
        crew = self.desk.crew
        if self.wide.has_very_many:
            return crew.is_late(WHOLE_UNTIL)
        is_late = not turns.allow(LEAST_DIVE_TURNS, FITTED_UNTIL)
        crew.was_late = crew.was_late or is_late
        return is_late

    def _soon(self) -> Iterator[Worth]:
        """What is found without a search; of very many services placing takes long, and the last choice will do."""
        try:
            choices = choose_soon(self.wide)
        except SOLVER_FAULTS as fault:  # what takes longer may find something still
            self.told_fault(fault)
            return
        yield from map(self.placed, choices[-1:] if self.wide.has_very_many else choices)

    def _by_dive(self) -> Worth | None:
        dive = dived(self.wide)
        return None if dive is None else self._completed(dive)

    def _at_once(self, best: Worth) -> Worth:
        return self.placed(choose(self.wide, best))

    def _moves_tiers(self, found: Worth, before: Worth) -> bool:
        """Tell whether a tier but the last lacks more than it is held at, or clearly less than it did."""
        above = sorted(found.lacking_usd_by_tier)[:-1]
        keeps = keeps_held(found, self.wide.held_usd_per_hour)
        return not keeps or any(is_clearly_better(found, before, rank) for rank in above)

    def _completed(self, dive: Dived) -> Worth:
        """Plan what a dive left open in full; where that fails, or it is much, fill."""
        if len(dive.open) > MOST_OPEN:
            return self.placed(dive.replicas)
        decided = self.desk.worth(place(self.cells, dive.replicas).counts)
        return self._fitter().fitted(decided, dive.open, is_rough=True)[0] or self.desk.repaired(decided.counts)

    def _branched(self, found: Worth) -> Worth:
        """Bound plans again, told apart by what short services leave undone, and choose where the bound is least."""
        self.wide.branches = branched(self.wide, found.objective_usd_per_hour, self._is_enough(found))
        self.raise_bound(found)
        for branch in sorted(self.wide.branches, key=lambda branch: branch.best)[:MOST_CHOSEN_IN]:
            if self.is_done(found) or self.wide.has_many:
                break
            found = self._better(found, self.placed(choose(branch, found)))
            self.raise_bound(found)
        return found

    def _fitted(self, found: Worth) -> Worth:
        """Plan a few services at a time anew, beside what the others hold."""
        found = self._fitter().run(found, self._is_fitted)
        self.raise_bound(found)
        return found

    def _is_fitted(self, worth: Worth) -> bool:
        """Tell whether to leave off; of very many services whoever begins once more is late."""
        return self.is_done(worth) or (self.wide.has_very_many and self.desk.crew.is_late(WHOLE_UNTIL))

    def _fitter(self) -> Fitter:
        return Fitter(
            desk=self.desk, wide=self.wide, gap=self.gap, settled=self.settled, seated=self.seated, placed=self.placed
        )

    def _improved(self, found: Worth) -> Worth:
        """Choose among ways near the plan's own until that brings little."""
        for _ in range(max(1, min(MOST_IMPROVED, WORK_IMPROVED // len(self.cells.services)))):
            again = self.placed(improve(self.wide, found))
            if not again.is_better_than(found):
                break
            before, found = found.objective_usd_per_hour, again
            if self.is_done(found) or before - found.objective_usd_per_hour < LEAST_IMPROVED * self.gap * before:
                break
        return found
