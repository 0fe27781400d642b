"""The check of links between locations: what crosses them, recomputed from places, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator

from solvers.engine import Role
from solvers.plan import Plan
from solvers.problem import Problem
from solvers.verify.pairs import group_of_profile, kv_group
from solvers.verify.parts import mix_of
from solvers.workload import ServedModel

RELATIVE = 1e-5
BYTES = 1.0  # a second
USD_PER_HOUR = 1e-6
SIDES = (Role.PREFILL, Role.DECODE)

Side = tuple[tuple[str, ...], str, Role]
"""KV group, link (empty for none) and role."""


def links(plan: Plan, problem: Problem) -> Iterator[str]:
    """Check what goes over every link against its room, its price, and what the plan says."""
    stated = {row.link: row for row in plan.links}
    known = {link.name: link for link in problem.policy.kv_links}
    for name in sorted(set(stated) ^ set(known)):
        yield f"links[{name}]: planned and existing links differ"
        return
    total = dict.fromkeys(((name, role) for name in known for role in SIDES), 0.0)
    for service in problem.services:
        if known and service.kv_may_cross:
            for sizes, served in _served(plan, service.name):
                for key, sent in _sent(plan, problem, service, sizes, served).items():
                    total[key] += sent
    for name, link in sorted(known.items()):
        row, found = stated[name], (total[name, Role.PREFILL], total[name, Role.DECODE])
        for word, said, is_now in zip(
            ("out", "in"), (row.outgoing_bytes_per_s, row.incoming_bytes_per_s), found, strict=True
        ):
            if not abs(said - is_now) <= BYTES + RELATIVE * is_now:
                yield f"links[{name}]: said {said:,.0f} B/s {word}, is {is_now:,.0f}"
            if is_now > link.bytes_per_s * (1.0 + RELATIVE) + BYTES:
                yield f"links[{name}]: {is_now:,.0f} B/s {word}, carries {link.bytes_per_s:,.0f}"
        cost = sum(found) * 3600.0 / 1e12 * link.usd_per_terabyte
        if not abs(row.usd_per_hour - cost) <= USD_PER_HOUR + RELATIVE * cost:
            yield f"links[{name}]: said {row.usd_per_hour:.6f} USD/h, is {cost:.6f}"


def _served(plan: Plan, service: str) -> list[tuple[str, float]]:
    """Requests per second by part of a service; one part of all sizes where it is not split."""
    parts = [(row.sizes, row.served_requests_per_s) for row in plan.parts if row.service == service]
    return parts or [("", row.served_requests_per_s) for row in plan.services if row.service == service]


def _sent(
    plan: Plan, problem: Problem, service: ServedModel, sizes: str, served: float
) -> dict[tuple[str, Role], float]:
    """Bytes per second by link: what pairs on one side and mixed replicas cannot serve, from spare to spare."""
    mixed, sides = _capacities(plan, problem, service, sizes)
    spots = {(group, link) for group, link, _ in sides}
    local = {spot: min(sides.get((*spot, role), 0.0) for role in SIDES) for spot in spots}
    beyond = max(0.0, served - mixed - sum(local.values()))
    spare = {(group, link, role): rate - local[group, link] for (group, link, role), rate in sides.items()}
    left: dict[tuple[tuple[str, ...], Role], float] = {}
    for (group, _, role), rate in spare.items():
        left[group, role] = left.get((group, role), 0.0) + rate
    able = {group: min(left.get((group, role), 0.0) for role in SIDES) for group, _ in spots}
    total, sent = sum(able.values()), dict[tuple[str, Role], float]()
    for (group, link, role), rate in spare.items():
        if link and total > 0.0 and rate > 0.0:
            crossed = beyond * able[group] / total * rate / left[group, role]
            size = _prompt_bytes(problem, service, sizes, group, plan)
            sent[link, role] = sent.get((link, role), 0.0) + crossed * size
    return sent


def _capacities(plan: Plan, problem: Problem, service: ServedModel, sizes: str) -> tuple[float, dict[Side, float]]:
    """What mixed replicas carry, and prefill and decode by KV group and link."""
    side_of = {at: link.name for link in problem.policy.kv_links for at in link.locations}
    pools = {p.pool: p for p in plan.pools if (p.pool.service, p.pool.sizes) == (service.name, sizes)}
    mixed, sides = 0.0, dict[Side, float]()
    for row in (row for row in plan.placements if row.pool in pools):
        rate = pools[row.pool].capacity_requests_per_s / max(1, pools[row.pool].replicas) * row.replicas
        if row.pool.role is Role.MIXED:
            mixed += rate
            continue
        key = kv_group(problem, service, row.pool), side_of.get(row.location, ""), row.pool.role
        sides[key] = sides.get(key, 0.0) + rate
    return mixed, sides


def _prompt_bytes(problem: Problem, service: ServedModel, sizes: str, group: tuple[str, ...], plan: Plan) -> float:
    """Keys and values of a mean prompt, at the most bytes a token of any profile of the group."""
    pool = next(p.pool for p in plan.pools if (p.pool.service, p.pool.sizes) == (service.name, sizes))
    mix = mix_of(problem, pool)
    tokens = sum(b.weight_ratio * b.prompt_tokens for b in mix) / max(1e-12, sum(b.weight_ratio for b in mix))
    sizes_of = [
        profile.kv_bytes_per_token
        for key, profile in problem.profiles.items()
        if key.model == service.model and group_of_profile(problem, service, key) == group
    ]
    return tokens * max(sizes_of, default=0)
