"""Why a service is short: the limits that keep each of its pools from one replica more, with their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from solvers.derived import derived
from solvers.engine import Role
from solvers.fleet import ANYWHERE, PoolKey
from solvers.pairing import Pairing
from solvers.planner.bays.grouping import WATT_TOLERANCE
from solvers.planner.bays.nodes import Counts, Room
from solvers.planner.bays.quotas import GPUS, POWER
from solvers.planner.bays.reclaim import Reclaims
from solvers.planner.pools.cells import PROMPT_ROLES, TOKEN_ROLES
from solvers.planner.pools.floors import Places, missing_locations, missing_of_chain, missing_of_pin, places_of
from solvers.planner.pools.options import Options, PoolOption
from solvers.planner.pools.spread import place_rates, worst_loss
from solvers.planner.pools.tally import ROUNDING, Worth
from solvers.problem import Problem, feeds_of
from solvers.workload import ServedModel

MOST_REASONS = 8
MOST_NAMED = 5  # profiles that a reason names
FULL = 1e-5  # relative
UNITS = {GPUS: "GPUs", POWER: "kW"}
CHAIN_WORDS = (("prompts", PROMPT_ROLES), ("output tokens", TOKEN_ROLES))


def reasons_by_service(problem: Problem, options: Options, worth: Worth) -> dict[str, tuple[str, ...]]:
    """Explain every short service; services that lack nothing are left out."""
    services = {service.name: service for service in problem.services}
    if not worth.short:
        return {}
    room = Room.of(problem)
    room.take_all(worth.counts)
    facts = _Facts(problem, worth.counts)
    return {name: _reasons(services[name], options, worth, room, facts) for name in worth.short}


class _Facts:
    """Numbers that reasons quote: GPUs in use by class, reserved watts by domain, and what stops pools at all bays."""

    def __init__(self, problem: Problem, counts: Counts) -> None:
        self.problem = problem
        self.used: dict[str, int] = {}
        for (pool, _), count in counts.items():
            self.used[pool.gpu_class] = self.used.get(pool.gpu_class, 0) + count * pool.config.gpus
        self.free = {g: sum(n.gpus_usable for n in problem.nodes if n.gpu_class == g) for g in problem.gpu_classes}
        self.reserved = feeds_of(problem).reserved_watts(counts)
        self.base = feeds_of(problem).base_watts
        self.blocked: dict[tuple[object, ...], list[str]] = {}  # by what pools are alike in

    def gpus(self, gpu_class: str, size: int) -> str:
        used, free = self.used.get(gpu_class, 0), self.free.get(gpu_class, 0)
        if free - used < size:
            return f"gpus[{gpu_class}]: {used} of {free} in use"
        return f"gpus[{gpu_class}]: {used} of {free} in use, no {size} free on one node that may be used"

    def power(self, domain: str, extra: float) -> str:
        usable = self.problem.domains[domain].usable_watts
        if self.base[domain] > usable:
            return f"power[{domain}]: idle GPUs draw {_watts(self.base[domain])}, usable {_watts(usable)}"
        held = self.reserved[domain]
        if usable - held < 1.0:
            return f"power[{domain}]: {_watts(usable)} all reserved"
        return f"power[{domain}]: {_watts(held)} of {_watts(usable)} reserved, one more replica needs {_watts(extra)}"


def _watts(watts: float) -> str:
    return f"{watts:,.0f} W".replace(",", " ")


def _reasons(service: ServedModel, options: Options, worth: Worth, room: Room, facts: _Facts) -> tuple[str, ...]:
    problem, mine = facts.problem, options.of(service.name)
    counts: Mapping[PoolKey, int] = {w.pool: w.replicas for w in worth.pools if w.pool.service == service.name}
    found: list[str] = []
    for word, roles in CHAIN_WORDS:
        if not any(option.pool.role in roles for option in mine):
            why = _first(options.unfit[service.name], roles) or _no_pools(problem, service, roles)
            found.append(f"nothing can serve its {word}: {why}")
    for option in sorted(mine, key=lambda o: (o.reserved_watts, o.pool)):
        if len(_one_per_limit(found)) >= MOST_REASONS:
            break  # others would come after these
        found += _blocking(service, option, counts, room, facts)
    places = places_of(service, worth.counts)
    for pin in service.pins:
        if missing := missing_of_pin(pin, places):
            found.insert(0, f"pins[{pin}]: {missing} of {pin.replicas} replicas have no place there")
    if missing := max(missing_locations(service, places, roles) for _, roles in CHAIN_WORDS):
        found.insert(0, f"minLocations: {missing} of {service.min_locations} locations are missing")
    if lost := _hangs(problem, service, worth, places):
        found.insert(0, lost)
    if unpaired := _unpaired(problem, service, worth, places):
        found.insert(0, unpaired)
    found[:0] = _over_links(service, worth)
    lacking = [missing_of_chain(service, places, roles) for _, roles in CHAIN_WORDS]
    if missing := max(lacking) if Role.MIXED in service.roles else sum(lacking):  # a mixed one counts in both
        found.insert(0, f"minReplicas: {missing} replicas have no place")
    return _one_per_limit(found)[:MOST_REASONS] or ("costs: serving the rest costs more than its tier's penalty",)


def _unpaired(problem: Problem, service: ServedModel, worth: Worth, places: Places) -> str:
    """Prefill and decode that could serve together and may not pair, when more would be served if they might."""
    pairing = derived(problem, Pairing.of)
    if service.name not in pairing.parted:
        return ""
    each = _rates_per_s(service, worth)
    pairs = pairing.pairs(service.name, {(pool, at): n * each[pool] for (pool, at), n in places.items()})
    prefill, decode = sum(pairs.prefill_per_s.values()), sum(pairs.decode_per_s.values())
    paired = pairs.able_per_s - pairs.mixed_per_s
    if min(prefill, decode) <= paired * (1.0 + ROUNDING):
        return ""
    rates = f"prefill carries {prefill:.2f} and decode {decode:.2f} requests/s, pairs {paired:.2f}"
    return f"kvMayCross: {rates}" if service.name in pairing.local else f"kvCompatibilityGroup: {rates}"


def _rates_per_s(service: ServedModel, worth: Worth) -> dict[PoolKey, float]:
    """What one replica of each pool of a service carries."""
    return {w.pool: w.capacity_requests_per_s / w.replicas for w in worth.pools if w.pool.service == service.name}


def _over_links(service: ServedModel, worth: Worth) -> list[str]:
    """Links that are full, for a service whose keys and values might cross them."""
    if not (service.has_pairs and service.kv_may_cross):
        return []
    full = []
    for load in worth.links:
        used = max(load.outgoing_bytes_per_s, load.incoming_bytes_per_s)
        if used >= load.link.bytes_per_s * (1.0 - FULL):
            full.append(f"kvLinks[{load.link.name}]: {used / 1e9:.3g} of {load.link.bytes_per_s / 1e9:.3g} GB/s in use")
    return full


def _hangs(problem: Problem, service: ServedModel, worth: Worth, places: Places) -> str:
    """The location that too much hangs on, when that is why less is served than the replicas carry."""
    if not service.hangs:
        return ""
    each = _rates_per_s(service, worth)
    worst = worst_loss(service, place_rates(places, each, Reclaims.of(problem)))
    demand = worth.demand_per_s[service.name]
    if worst is None or worst.survivable_per_s > worth.served_per_s[service.name] * (1.0 + ROUNDING):
        return ""
    left = f"{worst.left_per_s:.2f} requests/s are left, {worst.keep_ratio * demand:.2f} must be"
    if worst.location is None:
        return f"maxSpot: without the nodes that may be taken away {left}"
    return f"maxSharePerLocation: without {worst.location or 'any location'} {left}"


def _one_per_limit(reasons: Iterable[str]) -> tuple[str, ...]:
    """Keep the first reason of each limit; options come in order of size, so that is the least that would help."""
    unique: dict[str, str] = {}
    for reason in reasons:
        unique.setdefault(reason.split(":")[0], reason)
    return tuple(unique.values())


def _first(reasons: Iterable[str], roles: tuple[Role, ...]) -> str:
    return "; ".join([r for r in reasons if r.split(" on ")[0] in roles][:2])


def _no_pools(problem: Problem, service: ServedModel, roles: tuple[Role, ...]) -> str:
    """Why there is not even a pool to look at: no role for it, no profile, none that the service allows."""
    if not set(roles) & set(service.roles):
        return f"its roles are {', '.join(service.roles)}; add mixed, or prefill and decode together"
    known = [key for key in sorted(problem.profiles) if key.model == service.model]
    if not known:
        return f"there is no EngineProfile of model {service.model}; create one"
    have = ", ".join(f"{key.gpu_class}/{key.config.label}" for key in known[:MOST_NAMED])
    asked = (("gpuClasses", service.gpu_classes), ("engineConfigs", service.engine_configs))
    allows = " and ".join(f"{field} {', '.join(names)}" for field, names in asked if names)
    return f"profiles of {service.model} are for {have}, the service allows {allows}" if allows else "no pools"


def _blocking(
    service: ServedModel, option: PoolOption, counts: Mapping[PoolKey, int], room: Room, facts: _Facts
) -> list[str]:
    """Limits that stop one more replica of the pool at every place."""
    in_role = sum(n for pool, n in counts.items() if pool.role is option.pool.role)
    if in_role >= service.max_replicas:
        return [f"maxReplicas: {in_role} {option.pool.role} replicas of at most {service.max_replicas}"]
    if full := room.quotas.tight(option.pool):
        return [f"{row.limit}[{row.subject}]: {used:g} of {row.most:g} {UNITS[row.limit]} in use" for row, used in full]
    key = _alike(option, room)
    if key not in facts.blocked:
        facts.blocked[key] = _blocked_at_bays(option, room, facts)
    return facts.blocked[key]


def _alike(option: PoolOption, room: Room) -> tuple[object, ...]:
    """What bays ask of a replica: pools that are alike in it are stopped by the same, quotas aside."""
    pool = option.pool
    allowed = room.locations.get(pool.service, ()), pool.service in room.refusing
    return pool.gpu_class, option.is_anywhere, *allowed, room.shape(pool), option.reserved_watts


def _blocked_at_bays(option: PoolOption, room: Room, facts: _Facts) -> list[str]:
    """Limits of the bays that stop one more replica at each; none where one has room."""
    found: list[str] = []
    is_full = False
    for bay in room.bays_of(option.pool):
        where = ANYWHERE if option.is_anywhere else bay.location
        if room.spare_groups(bay, option.gpus) == 0:
            if not is_full:  # one limit whichever bay says it
                found.append(facts.gpus(option.pool.gpu_class, option.gpus))
            is_full = True
            continue
        if room.room(option.pool, where, bay) > 0:
            return []
        if room.spare(bay, room.shape(option.pool)) == 0:
            found += room.shelves.lacking(bay, room.shape(option.pool))
            continue
        tight = [
            d for d in room.charged(option.pool, where) if room.free_watts[d] + WATT_TOLERANCE < option.reserved_watts
        ]
        found += [facts.power(domain, option.reserved_watts) for domain in tight]
    return found
