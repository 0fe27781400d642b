"""Who does independent pieces of work: this process, or workers that give the same answers in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, Generic, TypeVar

from joblib import Parallel, delayed
from joblib._parallel_backends import LokyBackend
from joblib.executor import get_memmapping_executor
from joblib.parallel import get_active_backend

from solvers.apart import WorkLost, apart, make_ready
from solvers.deadline import Deadline
from solvers.planner.pools.sizings import Sizings
from solvers.problem import Problem
from solvers.programme import Programme, Run, Solution, solve
from solvers.workload import ServedModel

T = TypeVar("T")

PIECE_S = 300.0  # a piece takes seconds; a worker that is silent for so long hangs
GRACE_S = 10.0  # HiGHS looks at its clock now and then, not always; later than its limit by so much it hangs
IDLE_S = 300.0  # a worker without work for so long ends
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
KEPT_HEAP = {"MALLOC_TRIM_THRESHOLD_": str(2**28), "MALLOC_TOP_PAD_": str(2**24)}
"""What a worker frees it needs again a moment later: to glibc's default it would go back and forth."""

WIDE_GPUS = 512  # of fleets that are solved with every size of every pool; larger ones are shared out
PIECES = 16  # work is cut into as many, however many workers there are: answers never depend on their number


@dataclass(slots=True, kw_only=True)
class Crew:
    """Hands out pieces of work.

    Attributes
    ----------
    is_isolated : bool
        Integer solves run in a process of their own, on this machine whatever joblib works on.
    lost : int
        Pieces that no worker answered, one having died or hung: done here.
    is_helping : bool
        This process does pieces that no worker has begun, and all of them while workers are still being started.
    lost_solves : int
        Integer solves that a crash or a hang ended; they are not done again, as this process would share their fate.
    sizings : Sizings, optional
        What sizing said in earlier decisions.
    wide_gpus : int
        Fleets of more GPUs are large: they take the road that can be shared out.
    deadline : Deadline
        When the decision has to end.
    was_late : bool
        Something was not begun for want of time.
    aside : Aside, optional
        What may be done while HiGHS searches, and is asked for later.
    """

    workers: int = 1
    is_isolated: bool = False
    is_helping: bool = True
    lost: int = field(default=0)
    lost_solves: int = field(default=0)
    solve: Run = solve
    sizings: Sizings | None = None
    wide_gpus: int = WIDE_GPUS
    deadline: Deadline = field(default_factory=Deadline)
    was_late: bool = False
    aside: Aside[Any] | None = None

    def __post_init__(self) -> None:
        if self.is_isolated:
            make_ready()

    def finds_wide(self, problem: Problem) -> bool:
        """True for large fleets."""
        return sum(node.gpus_usable for node in problem.nodes) > self.wide_gpus

    def whole(self, programme: Programme) -> Solution:
        """Solve with whole numbers before the deadline, where no crash or hang of the solver's reaches this process.

        Raises
        ------
        WorkLost
            The solve died or did not end with its time limit.
        SolveFailed
            HiGHS gave no solution.
        """
        seconds = self.deadline.seconds_for(float(programme.options["time_limit"]))
        programme = replace(programme, options={**programme.options, "time_limit": seconds})
        if not self.is_isolated:
            return self.solve(programme)
        try:
            return apart(self.solve, programme, deadline_s=seconds + GRACE_S)
        except WorkLost:
            self.lost_solves += 1
            raise

    @contextmanager
    def while_solving(self) -> Iterator[None]:
        """Do what is aside beside a long integer solve, which leaves a core to this process: HiGHS holds no lock."""
        if self.aside is None or self.workers <= 1:
            yield
            return
        self.aside.begin()
        yield
        self.aside.wait()

    def is_late(self, share: float = 1.0) -> bool:
        """Tell whether so much of the time is over; who asks leaves what is still to do, and the notes say so."""
        is_past = self.deadline.is_past(share)
        self.was_late = self.was_late or is_past
        return is_past

    def notes(self) -> tuple[str, ...]:
        """Say how much was lost."""
        said = (
            (self.lost, "pieces of work were done again here: a worker died or hung"),
            (self.lost_solves, "integer solves were given up: their process died or hung"),
        )
        return tuple(f"{count} {what}" for count, what in said if count)

    def late_notes(self) -> tuple[str, ...]:
        """Say whether time ran out."""
        late = f"the time limit of {self.deadline.limit_s:g} s ended the search; with more it may find a better plan"
        return (late,) if self.was_late else ()

    def start(self) -> None:
        """Start the workers of this machine, which takes them a second or two; to those that run it is nothing."""
        if self.workers > 1 and _is_here():
            executor = HANDS.executor(self.workers)
            HANDS.left.extend(executor.submit(_each, abs, ()) for _ in range(self.workers))

    def each(self, do: Callable[..., T], work: Sequence[tuple[Any, ...]]) -> list[T]:
        """Do every piece, answers in order."""
        if self.workers <= 1 or len(work) < 2:
            return [do(*piece) for piece in work]
        cuts = _cut(work)
        return _joined(work, self.shared(do, cuts) if _is_here() else self._sent(do, cuts))

    def ahead(self, do: Callable[..., T], work: Sequence[tuple[Any, ...]]) -> Callable[[], list[T]]:
        """Begin pieces that others do while this process does something else; it returns what gives their answers.

        One worker less than there are is kept busy meanwhile: a core stays this process's own. What nobody has begun
        when the answers are asked for is shared out then.
        """
        if self.workers <= 1 or len(work) < 2 or not _is_here():
            return lambda: self.each(do, work)
        begun = Ahead(crew=self, do=do, cuts=_cut(work))
        for _ in range(self.workers - 1):
            begun.go_on()
        return lambda: _joined(work, begun.answers())

    def shared(self, do: Callable[..., T], cuts: Sequence[Sequence[tuple[Any, ...]]]) -> list[list[T]]:
        """Pieces go to workers from the first on; this process takes up others from the last on."""
        executor = HANDS.executor(self.workers)
        futures: list[Future[list[T]]] = []
        with suppress(BrokenExecutor):  # a worker died meanwhile: what could not be handed out is done here
            futures.extend(executor.submit(_each, do, cut) for cut in cuts)
        self.lost += len(cuts) - len(futures)
        mine: dict[int, list[T]] = {}
        for index in reversed(range(len(cuts))):
            if index >= len(futures) or (self.is_helping and _is_open(futures, index)):
                mine[index] = _each(do, cuts[index])
        HANDS.left.extend(futures[index] for index in mine if index < len(futures))
        return [mine[i] if i in mine else self.answer(do, cut, futures[i]) for i, cut in enumerate(cuts)]

    def answer(self, do: Callable[..., T], cut: Sequence[tuple[Any, ...]], future: Future[list[T]]) -> list[T]:
        """What a worker answers; done here when it died or hangs."""
        try:
            return future.result(PIECE_S)
        except (BrokenExecutor, TimeoutError) as fault:
            if isinstance(fault, TimeoutError):
                HANDS.executor(self.workers).shutdown(kill_workers=True)
            self.lost += 1
        return _each(do, cut)

    def _sent(self, do: Callable[..., T], cuts: Sequence[Sequence[tuple[Any, ...]]]) -> list[list[T]]:
        """What the workers of a cluster answer; what they leave out when one of them dies or hangs is done here."""
        answers: list[list[T]] = []
        streams = get_active_backend()[0].supports_return_generator  # Ray's backend does not
        return_as = "generator" if streams else "list"
        parallel = Parallel(n_jobs=self.workers, return_as=return_as, timeout=PIECE_S)
        try:
            answers.extend(parallel(delayed(_each)(do, cut) for cut in cuts))
        except (BrokenExecutor, TimeoutError):
            self.lost += len(cuts) - len(answers)
        return [*answers, *(_each(do, cut) for cut in cuts[len(answers) :])]


def _is_here() -> bool:
    """True where joblib would start processes on this machine: on no cluster, and in no worker."""
    return isinstance(get_active_backend()[0], LokyBackend)


@dataclass(slots=True, kw_only=True)
class Aside(Generic[T]):
    """Something that is asked for later, and may be done in a thread of its own before; nothing else changes it."""

    do: Callable[[], T]
    _found: Future[T] | None = None

    def begin(self) -> None:
        """Do it beside what follows, unless it is begun already."""
        if self._found is None:
            thread = ThreadPoolExecutor(1)
            self._found = thread.submit(self.do)
            thread.shutdown(wait=False)  # once that is done

    def wait(self) -> None:
        """Wait until it is done, if it was begun."""
        if self._found is not None:
            wait([self._found])

    def answer(self) -> T:
        """What it gives; done here where it was not begun."""
        return self.do() if self._found is None else self._found.result()


@dataclass(slots=True, kw_only=True)
class Ahead(Generic[T]):
    """Pieces that workers do, one after another, until their answers are asked for; ``futures`` are those begun."""

    crew: Crew
    do: Callable[..., T]
    cuts: Sequence[Sequence[tuple[Any, ...]]]
    futures: list[Future[list[T]]] = field(default_factory=list)
    is_over: bool = False
    lock: Any = field(default_factory=Lock)

    def go_on(self, _: object = None) -> None:
        """Hand out the next piece, and go on when it is answered."""
        with self.lock:
            if self.is_over or len(self.futures) == len(self.cuts):
                return
            try:
                future = HANDS.executor(self.crew.workers).submit(_each, self.do, self.cuts[len(self.futures)])
            except BrokenExecutor:  # a worker died meanwhile: what is left is shared out later
                self.is_over = True
                return
            self.futures.append(future)
        future.add_done_callback(self.go_on)

    def answers(self) -> list[list[T]]:
        """Answers in order."""
        with self.lock:
            self.is_over = True
        rest = self.crew.shared(self.do, self.cuts[len(self.futures) :])
        begun = zip(self.cuts, self.futures, strict=False)
        return [*(self.crew.answer(self.do, cut, future) for cut, future in begun), *rest]


@dataclass(slots=True, kw_only=True)
class Hands:
    """The worker processes of this machine, shared by all crews; ``left`` is what nobody waits for any more."""

    workers: int = 0
    left: list[Future[Any]] = field(default_factory=list)

    def executor(self, workers: int) -> Any:
        """So many workers, who take a second or two to start; more or fewer of them once they have nothing to do."""
        self.left = list(wait(self.left, PIECE_S if workers != self.workers else 0.0).not_done)
        self.workers = workers
        return get_memmapping_executor(workers, timeout=IDLE_S, env={**ONE_THREAD, **KEPT_HEAP}, max_nbytes=None)


HANDS = Hands()


def _cut(work: Sequence[tuple[Any, ...]]) -> list[Sequence[tuple[Any, ...]]]:
    return [work[start::PIECES] for start in range(min(PIECES, len(work)))]


def _joined(work: Sequence[tuple[Any, ...]], answers: Sequence[list[T]]) -> list[T]:
    """Answers of pieces in the order of the work that was cut."""
    found: list[Any] = [None] * len(work)
    for start, answer in enumerate(answers):
        found[start::PIECES] = answer
    return found


def _is_open(futures: Sequence[Future[Any]], index: int) -> bool:
    """True when no worker has begun the piece, or none has answered any: then they are still being started."""
    return futures[index].cancel() or not any(future.done() and not future.cancelled() for future in futures)


def _each(do: Callable[..., T], work: Sequence[tuple[Any, ...]]) -> list[T]:
    return [do(*piece) for piece in work]


def of_service(problem: Problem, service: ServedModel) -> Problem:
    """What sizing reads of one service, light enough to send away."""
    demands = {service.name: problem.demands[service.name]}
    return replace(problem, services=(service,), demands=demands, nodes=(), domains={}, profiles={}, running={})
