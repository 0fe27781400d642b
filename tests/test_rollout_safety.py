"""Every step of every rollout keeps every budget, and the last one reaches the plan."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from solvers.engine import Role
from solvers.fleet import ANYWHERE, Node, PoolKey, PowerDomain, Replica, ReplicaState
from solvers.ledger import reserved_now_watts
from solvers.plan import Plan
from solvers.problem import Policy
from solvers.rollout import Action, next_step
from tests.rollout_world import Place, World, node, plan, pool

SEEDS = st.integers(0, 2**31)
RANKS = {"demo/vip": 0, "demo/std": 1, "demo/mass": 2}
MAX_TURNS = 120


def fleet(rng: random.Random) -> tuple[Node, ...]:
    racks = [f"r{i}" for i in range(rng.randint(1, 3))]
    return tuple(
        node(f"{rack}-{i}", rack, rng.choice(["h100", "l40s"]), rng.choice([4, 8]))
        for rack in racks
        for i in range(rng.randint(1, 2))
    )


def pools(rng: random.Random, sizes: list[int]) -> list[PoolKey]:
    roles = list(Role)
    return [
        pool(service, rng.choice(roles), gpu_class, rng.choice(sizes))
        for service in RANKS
        for gpu_class in ("h100", "l40s")
    ]


def fill(world: World, choices: list[PoolKey], tries: int, locations: list[str]) -> dict[Place, int]:
    """Ask for random replicas that fit, let the world settle, and say what came to be."""
    for _ in range(tries):
        place = world.rng.choice(choices), world.rng.choice(locations)
        world.desired[place] = world.desired.get(place, 0) + 1
        world.settle()
        if any(replica.state is ReplicaState.PENDING for replica in world.pods) or is_over(world):
            world.desired[place] -= 1
            world.settle()
    return {place: count for place, count in world.desired.items() if count}


def is_over(world: World) -> set[str]:
    """Domains over their budget."""
    reserved = reserved_now_watts(world.snapshot())
    return {name for name, domain in world.domains.items() if reserved.get(name, 0.0) > domain.usable_watts + 1e-3}


def domains(nodes: tuple[Node, ...], rng: random.Random, low: float, high: float) -> dict[str, PowerDomain]:
    names = sorted({name for one in nodes for name in one.domains})
    most = {name: sum(n.gpus_total for n in nodes if name in n.domains) * 825.0 for name in names}
    return {name: PowerDomain(name=name, budget_watts=most[name] * rng.uniform(low, high)) for name in names}


def build(rng: random.Random, sizes: list[int], *, anywhere: bool = False) -> tuple[World, Plan]:
    """A fleet that runs something, and a plan that fits it."""
    nodes = fleet(rng)
    limits = domains(nodes, rng, 0.3, 1.0)
    locations = sorted({n.location for n in nodes}) + ([ANYWHERE] if anywhere else [])
    wanted = fill(World(nodes=nodes, domains=limits, rng=rng), pools(rng, sizes), 10, locations)
    world = World(nodes=nodes, domains=limits, rng=rng)
    fill(world, pools(rng, sizes), 10, locations)
    return world, plan(wanted)


class Watch:
    """Asserts what must hold after every single change."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.reserved = reserved_now_watts(world.snapshot())

    def __call__(self) -> None:
        reserved = reserved_now_watts(self.world.snapshot())
        for name, domain in self.world.domains.items():
            allowed = max(domain.usable_watts, self.reserved[name])
            assert reserved[name] <= allowed + 1e-3, f"{name} reserves {reserved[name]} of {domain.usable_watts}"
            assert self.world.draw_watts(name) <= reserved[name] + 1e-3
        self.reserved = reserved


def check_step(world: World, actions: tuple[Action, ...], limit: int) -> None:
    places = [(action.pool, action.location) for action in actions]
    assert len(set(places)) == len(places), "one action for a place"
    for action in actions:
        assert action.from_replicas != action.to_replicas
        assert action.to_replicas >= 0
        assert action.reason
        assert len(set(action.leaving)) == len(action.leaving)
    starts = sum(max(0, action.to_replicas - action.from_replicas) for action in actions)
    not_ready = sum(replica.state in (ReplicaState.PENDING, ReplicaState.STARTING) for replica in world.pods)
    assert starts == 0 or starts + not_ready <= limit


def ready(world: World, service: str, role: Role) -> int:
    return sum(
        p.state is ReplicaState.READY and p.pool.service == service and p.pool.role in (role, Role.MIXED)
        for p in world.pods
    )


def turn(world: World, wanted: Plan, watch: Watch, policy: Policy, *, partly: bool) -> tuple[Action, ...]:
    actions = next_step(world.snapshot(), wanted, policy, tier_ranks=RANKS)
    check_step(world, actions, policy.max_starts_per_turn)
    world.obey(actions)
    watch()
    if partly:
        for _ in range(world.rng.randint(0, 5)):
            world.move()
            watch()
    else:
        world.settle(watch)
    return actions


def counts(world: World) -> dict[Place, int]:
    return dict(Counter((p.pool, p.location) for p in world.pods if p.state is ReplicaState.READY))


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_no_change_in_any_order_takes_a_domain_over_its_budget(seed: int) -> None:
    world, wanted = build(random.Random(seed), [1, 2, 4, 8], anywhere=True)
    watch, policy = Watch(world), Policy(max_starts_per_turn=world.rng.randint(1, 8))
    for _ in range(40):
        turn(world, wanted, watch, policy, partly=True)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from([1, 2, 4]))
def test_a_world_that_obeys_reaches_the_plan(seed: int, size: int) -> None:
    world, wanted = build(random.Random(seed), [size])
    watch, policy = Watch(world), Policy(max_starts_per_turn=world.rng.randint(1, 8))
    for _ in range(MAX_TURNS):
        if not turn(world, wanted, watch, policy, partly=False):
            break
    assert counts(world) == {(p.pool, p.location): p.replicas for p in wanted.placements if p.replicas}
    assert next_step(world.snapshot(), wanted, policy, tier_ranks=RANKS) == ()


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_a_budget_cut_is_answered_in_one_step_and_nothing_grows_meanwhile(seed: int) -> None:
    world, _ = build(random.Random(seed), [1, 2, 4])
    world.settle()
    wanted = plan({place: count for place, count in world.desired.items() if count})
    world.domains = {
        name: PowerDomain(name=name, budget_watts=domain.budget_watts * world.rng.uniform(0.2, 1.0))
        for name, domain in world.domains.items()
    }
    watch = Watch(world)
    turn(world, wanted, watch, Policy(), partly=False)
    over = is_over(world)
    left = [p for p in world.pods for n in world.nodes if p.node == n.name and over.intersection(n.domains)]
    assert left == [], "only idle power may still be over"


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_a_chain_that_serves_keeps_serving_unless_its_service_can_only_swap_in_place(seed: int) -> None:
    world, wanted = build(random.Random(seed), [1, 2, 4])
    target = {(p.pool.service, role) for p in wanted.placements if p.replicas for role in _serves(p.pool)}
    policy, watch = Policy(max_starts_per_turn=world.rng.randint(1, 8)), Watch(world)
    for _ in range(60):
        before = {chain: ready(world, *chain) for chain in target}
        actions = next_step(world.snapshot(), wanted, policy, tier_ranks=RANKS)
        started = {action.pool.service for action in actions if action.to_replicas > action.from_replicas}
        world.obey(actions)
        world.settle(watch)
        stopped = {service for service, role in target if before[service, role] and not ready(world, service, role)}
        assert not stopped & started
        if not actions:
            break


def _serves(of: PoolKey) -> tuple[Role, ...]:
    return (Role.PREFILL, Role.DECODE) if of.role is Role.MIXED else (of.role,)


class Swap:
    """A rollout between two plans that both serve the demand; one GPU carries one request per second.

    Attributes
    ----------
    served : mapping of service to float, requests/s
        What both plans serve.
    left, pushed : int
        Ready replicas that left, and those of them that left before what replaces them was Ready.
    """

    def __init__(self, world: World, wanted: dict[Place, int]) -> None:
        self.world = world
        before = {(service, role): _carried(world, service, role) for service in RANKS for role in CHAINS}
        after = {(service, role): _planned(wanted, service, role) for service in RANKS for role in CHAINS}
        self.served = {s: min(both(before, after, s)) for s in RANKS}
        self.plan = plan(wanted, served=self.served)
        self.chains = [chain for chain, rate in after.items() if rate > 0.0]
        self.left = self.pushed = 0

    def step(self, policy: Policy) -> bool:
        """Take one step; what leaves in it must not be missed, unless it is pushed out at a standstill."""
        carried = {p.pool: float(p.pool.config.gpus) for p in self.world.pods}
        actions = next_step(self.world.snapshot(), self.plan, policy, tier_ranks=RANKS, carried=carried)
        going = self._going(actions)
        pushed = {(r.pool.service, role) for r, is_pushed in going for role in _serves(r.pool) if is_pushed}
        assert len({service for service, _ in pushed}) <= 1 or _is_one_start(actions)
        kept = {chain: _carried(self.world, *chain) for chain in self.chains}
        self.world.obey(actions)
        for service, role in self.chains:
            least = min(kept[service, role], self.served[service])
            assert _carried(self.world, service, role) >= least or (service, role) in pushed, (service, role, actions)
        self.left += len(going)
        self.pushed += sum(is_pushed for _, is_pushed in going)
        return bool(actions)

    def _going(self, actions: tuple[Action, ...]) -> list[tuple[Replica, bool]]:
        """Ready replicas that leave, and whether they were pushed."""
        why = {name: action.reason for action in actions for name in action.leaving}
        pods = (p for p in self.world.pods if p.name in why and p.state is ReplicaState.READY)
        return [(p, any(words in why[p.name] for words in ("makes room", "moves to another node"))) for p in pods]


CHAINS = (Role.PREFILL, Role.DECODE)


def _is_one_start(actions: tuple[Action, ...]) -> bool:
    """True when all that is pushed leaves for one start."""
    reasons = {part for action in actions for part in action.reason.split("; ") if "makes room" in part}
    return len(reasons) == 1


def both(before: dict[tuple[str, Role], float], after: dict[tuple[str, Role], float], service: str) -> list[float]:
    """What the chains that are planned carry before and after."""
    planned = [(service, role) for role in CHAINS if after[service, role] > 0.0]
    return [rate for chain in planned for rate in (before[chain], after[chain])] or [0.0]


def _chains(of: PoolKey) -> list[tuple[str, Role]]:
    return [(of.service, role) for role in _serves(of)]


def _carried(world: World, service: str, role: Role) -> float:
    """Requests per second that the Ready replicas of a chain carry which are not asked to leave yet."""
    ready = Counter((p.pool, p.location) for p in world.pods if p.state is ReplicaState.READY)
    there = {place: min(count, world.desired.get(place, 0)) for place, count in ready.items()}
    return _planned(there, service, role)


def _planned(counts: dict[Place, int], service: str, role: Role) -> float:
    return float(sum(n * of.config.gpus for (of, _), n in counts.items() if (service, role) in _chains(of)))


def build_swap(rng: random.Random, sizes: list[int], spare_ratio: float) -> Swap:
    """Two sets of counts that fit while so much of every node and budget stays free."""
    nodes = fleet(rng)
    limits = domains(nodes, rng, 0.5, 1.0)
    tight = tuple(replace(n, gpus_usable=int(n.gpus_usable * (1.0 - spare_ratio))) for n in nodes)
    tight_limits = {
        name: replace(domain, budget_watts=domain.budget_watts * (1.0 - spare_ratio)) for name, domain in limits.items()
    }
    locations = sorted({n.location for n in nodes})
    wanted = fill(World(nodes=tight, domains=tight_limits, rng=rng), pools(rng, sizes), 12, locations)
    world = World(nodes=tight, domains=tight_limits, rng=rng)
    fill(world, pools(rng, sizes), 12, locations)
    world.nodes, world.domains = nodes, limits
    return Swap(world, wanted)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from([0.0, 0.25]))
def test_a_swap_never_takes_what_the_demand_needs_unless_it_stands_still(seed: int, spare_ratio: float) -> None:
    swap = build_swap(random.Random(seed), [1, 2, 4], spare_ratio)
    watch, policy = Watch(swap.world), Policy(max_starts_per_turn=swap.world.rng.randint(1, 8))
    for _ in range(50):
        for _ in range(swap.world.rng.randint(0, 8)):
            swap.world.move()
            watch()
        swap.step(policy)
        watch()


def test_with_a_quarter_of_the_fleet_free_hardly_anything_is_pushed_out() -> None:
    left = pushed = 0
    for seed in range(30):
        swap = build_swap(random.Random(seed), [1, 2], 0.25)
        while swap.step(Policy()):
            swap.world.settle()
        assert counts(swap.world) == {(p.pool, p.location): p.replicas for p in swap.plan.placements if p.replicas}
        left, pushed = left + swap.left, pushed + swap.pushed
    assert left > 100, "the worlds do swap"
    assert pushed <= 0.05 * left, f"{pushed} of {left} were pushed out"


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_a_lost_node_breaks_no_budget(seed: int) -> None:
    world, wanted = build(random.Random(seed), [2])
    lost = world.rng.choice(world.nodes)
    _lose(world, lost)
    watch = Watch(world)
    for _ in range(20):
        turn(world, wanted, watch, Policy(), partly=True)


def test_a_lost_node_does_not_stop_the_rest() -> None:
    """What stays undone elsewhere waits for room or watts that the lost node still holds."""
    reached = 0
    for seed in range(40):
        world, wanted = build(random.Random(seed), [2])
        lost = world.rng.choice(world.nodes)
        _lose(world, lost)
        turns = (turn(world, wanted, Watch(world), Policy(), partly=False) for _ in range(MAX_TURNS))
        assert any(not actions for actions in turns), "it comes to rest"
        asked = {(p.pool, p.location): p.replicas for p in wanted.placements if p.replicas}
        reached += _but_at(lost.location, counts(world)) == _but_at(lost.location, asked)
    assert reached >= 30


def _but_at(location: str, by_place: Mapping[Place, int]) -> dict[Place, int]:
    return {place: count for place, count in by_place.items() if place[1] != location}


def _lose(world: World, lost: Node) -> None:
    """The node goes NotReady: its replicas hold their watts and serve nothing."""
    gone = [p for p in world.pods if p.node == lost.name]
    world.pods = [p for p in world.pods if p.node != lost.name] + [_as_lost(p) for p in gone]
    held = sum(750.0 * p.pool.config.gpus if lost.gpu_class == "h100" else 440.0 * p.pool.config.gpus for p in gone)
    world.nodes = tuple(
        n
        if n.name != lost.name
        else node(n.name, n.location, n.gpu_class, n.gpus_total, gpus_usable=0, held_watts=held)
        for n in world.nodes
    )


def _as_lost(replica: Replica) -> Replica:
    return Replica(
        name=replica.name, pool=replica.pool, location=replica.location, node=replica.node, state=ReplicaState.LOST
    )
