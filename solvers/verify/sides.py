"""Who may pair with whom, in a bound: pools of a service cut by KV group, by place, or with what links pay for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy.optimize import linprog

from solvers.certificate import LINK_IN, LINK_OUT
from solvers.engine import Role
from solvers.problem import Problem
from solvers.verify.beside import Each, most_per_s, places_of
from solvers.verify.cases import Case, Pool, View
from solvers.verify.market import Market
from solvers.verify.pairs import group_of_profile, kv_group
from solvers.verify.stock import Floats, Stock
from solvers.workload import ServedModel

PAIR = (Role.PREFILL, Role.DECODE)
NO_LINK = ""
RANGE = 1e-3  # of a request's cost, what worths that lie apart are held to weigh: of equals the nearest to each other
TERABYTE_HOURS = 3600.0 / 1e12  # terabytes in an hour of a byte a second

Group = tuple[str, ...]


def add_pairs(case: Case) -> None:
    """Look at the service as one whose pairs matter too, where they do; the higher of its values counts."""
    service = case.service
    if not service.has_pairs or not any(pool.key.role in PAIR for pool in case.pools):
        return
    groups = {kv_group(case.problem, service, pool.key) for pool in case.pools if pool.key.role in PAIR}
    is_local = not service.kv_may_cross and not case.is_anywhere
    is_linked = service.kv_may_cross and not case.is_anywhere and bool(case.problem.policy.kv_links)
    if is_local:
        case.views.append(_at_sites(case))
    elif is_linked:
        case.views += _over_links(case, groups)
    elif len(groups) > 1:
        stocks = [_grouped(case, pool) for pool in case.pools]
        case.views.append(View.paired(stocks, {}))


def _grouped(case: Case, pool: Pool, *more: str) -> Stock:
    """The pool's stock, in its KV group; what is learned of the one is known of the other."""
    if pool.key.role is Role.MIXED:
        return pool.stock
    return replace(pool.stock, group=(*kv_group(case.problem, case.service, pool.key), *more))


def _at_sites(case: Case) -> View:
    """Cut prefill and decode by where they are: pairs form at one location, those alike in every price taken as one.

    A pool keeps the capacity of its whole size, which its parts do not know: they carry what no size could better, nor
    what stands beside them.
    """
    stocks: list[Stock] = []
    places = places_of(case.problem, case.market.bays)
    for pool in case.pools:
        if pool.key.role is Role.MIXED:
            stocks.append(pool.stock)
            continue
        others, sites = _others(case, pool), _sites(case.market)
        able = {name: units for name, at in sites.items() if len(units := case.units(pool.key, pool.watts, at=at))}
        for name, units in able.items():
            is_whole, site = len(able) == 1, sites[name]
            most = max(most_per_s(place, _each(pool), others) for place in {places[at] for at in site})
            if is_whole and most >= pool.stock.rate_per_s:
                stocks.append(_grouped(case, pool, name))
                continue
            best = replace(_grouped(case, pool, name), units_usd_per_hour=units, known={})
            best.pair = best.pair if is_whole else (*best.pair, name)
            best.sized = partial(_at_most, pool.stock, most, is_whole)
            best.ask(best.most)
            stocks.append(best)
    return View.paired(stocks, {})


def _each(pool: Pool) -> Each:
    rate = pool.stock.rate_per_s
    return Each(gpu_class=pool.key.gpu_class, gpus=pool.key.config.gpus, watts=pool.watts, rate_per_s=rate)


def _others(case: Case, pool: Pool) -> tuple[Each, ...]:
    """Replicas that those of the pool may pair with."""
    group = kv_group(case.problem, case.service, pool.key)
    other = PAIR[pool.key.role is PAIR[0]]
    mine = (each for each in case.pools if each.key.role is other)
    return tuple(_each(each) for each in mine if kv_group(case.problem, case.service, each.key) == group)


def _at_most(stock: Stock, most_per_s: float, is_whole: bool, size: int) -> tuple[float, float]:
    """The rate of the size, or of the largest in a part of the pool, and the draw of no more replicas than it has."""
    stock.ask(size)
    rate, usd = stock.known[size]
    return min(most_per_s, rate if is_whole else stock.rate_per_s), usd


def _sites(market: Market) -> dict[str, frozenset[str]]:
    """Locations by what tells them apart: the kinds of place that they have, and what is free on each node there."""
    found: dict[str, list[tuple[str, int, tuple[int, ...]]]] = {}
    for (gpu_class, location), kind in sorted(market.kind_of.items()):
        free = tuple(sorted(node.gpus_usable for node in market.bays[gpu_class, location]))
        found.setdefault(location, []).append((gpu_class, kind, free))
    alike: dict[tuple[tuple[str, int, tuple[int, ...]], ...], set[str]] = {}
    for location, has in found.items():
        alike.setdefault(tuple(has), set()).add(location)
    return {min(places): frozenset(places) for places in alike.values()}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Worth:
    """What a request per second handed over at each link's side is worth, USD per hour, and its range."""

    by_link: Mapping[str, float]
    highest: float
    lowest: float

    @classmethod
    def of(cls, links: list[str], usd: Floats, prefill: Floats, decode: Floats) -> _Worth:
        """Scale worths down as far as it takes for nobody to get more than ``prefill`` and ``decode`` cost there."""
        begins, ends = np.isfinite(prefill), np.isfinite(decode)
        highest, lowest = usd[begins].max(initial=-math.inf), usd[ends].min(initial=math.inf)
        if not (math.isfinite(highest) and math.isfinite(lowest)):
            return cls(by_link=dict.fromkeys(links, 0.0), highest=0.0, lowest=0.0)
        highest = max(highest, lowest)
        gets = np.concatenate([(highest - usd)[begins], (usd - lowest)[ends]])
        costs = np.concatenate([prefill[begins], decode[ends]])
        paid = gets > 0.0
        scale = min(1.0, float((costs[paid] / gets[paid]).min(initial=1.0)))
        by_link = dict(zip(links, (scale * usd).tolist(), strict=True))
        return cls(by_link=by_link, highest=scale * float(highest), lowest=scale * float(lowest))


def _over_links(case: Case, groups: set[Group]) -> list[View]:
    """Let prefill and decode pay for being where they are what crossing links would; one view for each way to reckon.

    What leaves a side and what enters one cost a request so much each. For any worth of a side between minus what
    entering it costs and what leaving it costs, crossing pays at least worth times (prefill less decode), over all
    sides. Of this no replica pays more than nothing: what is added to make it so is taken from all pairs by load.
    """
    tried = [_worths(case, group) for group in sorted(groups)]
    return [_with_worths(case, dict(zip(sorted(groups), worths, strict=True))) for worths in zip(*tried, strict=True)]


def _with_worths(case: Case, worth: Mapping[Group, _Worth]) -> View:
    stocks: list[Stock] = []
    for pool in case.pools:
        stock = _grouped(case, pool)
        if pool.key.role is not Role.MIXED:
            of = worth[stock.group]
            sign, end = (1.0, of.highest) if pool.key.role is Role.PREFILL else (-1.0, of.lowest)
            rate = pool.stock.rate_per_s
            more = {link: min(0.0, sign * (usd - end) * rate) for link, usd in of.by_link.items()}
            stock = replace(stock, units_usd_per_hour=case.units(pool.key, pool.watts, more_usd_per_hour=more))
        stocks.append(stock)
    asked = case.problem.demands[case.service.name].requests_per_s
    return View.paired(stocks, {group: (of.highest - of.lowest) * asked for group, of in worth.items()})


def _worths(case: Case, group: Group) -> list[_Worth]:
    """Find worths that say much: those that make prefill, or decode, cost the same wherever they can, and the closest.

    Nobody is given more than a request costs there at least: it would be worth having for its own sake.
    """
    links = [NO_LINK, *sorted(link.name for link in case.problem.policy.kv_links)]
    leaves, enters = _crossing_usd(case.problem, case.service, case.market, group, links)
    prefill, decode = (_cheapest(case, role, group, links) for role in PAIR)
    if not (np.isfinite(prefill).any() and np.isfinite(decode).any()):
        return [_Worth.of(links, np.zeros(len(links)), prefill, decode)] * 3
    begun, ended = (prefill + leaves).min(), (decode + enters).min()
    best = min((prefill + decode).min(), begun + ended)
    found = (
        begun - np.minimum(prefill, best),
        np.minimum(decode, best) - ended,
        _closest(leaves, enters, prefill, decode),
    )
    return [_Worth.of(links, np.clip(usd, -enters, leaves), prefill, decode) for usd in found]


def _closest(leaves: Floats, enters: Floats, prefill: Floats, decode: Floats) -> Floats:
    """Worths that say most, were replicas divisible, and lie closest together: a linear programme of a few columns."""
    count = len(leaves)
    high, low, begun, ended = range(count, count + 4)  # columns after the worths: their range, and what each side pays
    rows: list[dict[int, float]] = [{low: 1.0, high: -1.0}]
    most = [0.0]
    for at in range(count):
        if np.isfinite(prefill[at]):
            rows += [{at: 1.0, high: -1.0}, {begun: 1.0, at: -1.0}, {high: 1.0, at: -1.0}]
            most += [0.0, prefill[at], prefill[at]]
        if np.isfinite(decode[at]):
            rows += [{at: -1.0, low: 1.0}, {ended: 1.0, at: 1.0}, {at: 1.0, low: -1.0}]
            most += [0.0, decode[at], decode[at]]
    matrix = np.array([[row.get(column, 0.0) for column in range(count + 4)] for row in rows])
    bounds = [*zip(-enters, leaves, strict=True), *[(None, None)] * 4]
    gain = np.zeros(count + 4)
    gain[[begun, ended, high, low]] = -1.0, -1.0, RANGE, -RANGE
    solved = linprog(gain, A_ub=matrix, b_ub=np.array(most), bounds=bounds, method="highs")
    return solved.x[:count] if solved.x is not None else np.zeros(count)


def _crossing_usd(
    problem: Problem, service: ServedModel, market: Market, group: Group, links: list[str]
) -> tuple[Floats, Floats]:
    """What leaving and what entering each side costs a request per second, USD per hour; nothing where no link is."""
    known = {link.name: link for link in problem.policy.kv_links}
    size = _prompt_bytes(problem, service, group)
    found = []
    for limit in (LINK_OUT, LINK_IN):
        full = dict.fromkeys(links, 0.0)
        for row in market.rows:
            for place in row.places if row.limit == limit else ():
                full[place] = full.get(place, 0.0) + row.usd_per_hour
        usd = [
            size * (TERABYTE_HOURS * known[name].usd_per_terabyte + full[name] / known[name].bytes_per_s)
            if name in known
            else 0.0
            for name in links
        ]
        found.append(np.array(usd))
    return found[0], found[1]


def _prompt_bytes(problem: Problem, service: ServedModel, group: Group) -> float:
    """Keys and values of a mean prompt, at the most bytes a token of any profile of the group."""
    mix = problem.demands[service.name].mix
    weight = sum(bucket.weight_ratio for bucket in mix)
    tokens = sum(bucket.weight_ratio * bucket.prompt_tokens for bucket in mix) / weight if weight > 0.0 else 0.0
    sizes = [
        profile.kv_bytes_per_token
        for key, profile in problem.profiles.items()
        if key.model == service.model and group_of_profile(problem, service, key) == group
    ]
    return tokens * max(sizes, default=0)


def _cheapest(case: Case, role: Role, group: Group, links: list[str]) -> Floats:
    """Least that a request per second costs at each side, USD per hour; infinite where nobody can be."""
    market, least = case.market, np.full(len(links), np.inf)
    for pool in case.pools:
        rate = pool.stock.rate_per_s
        if pool.key.role is not role or rate <= 0.0 or kv_group(case.problem, case.service, pool.key) != group:
            continue
        for at, name in enumerate(links):
            kinds = market.kinds[pool.key.gpu_class]
            places = frozenset(place for kind in kinds if kind.link == name for place in kind.locations)
            units = case.units(pool.key, pool.watts, at=places) if places else np.zeros(0)
            if len(units):
                usd = max(0.0, float(units[0]) + pool.stock.idle_usd_per_hour) / rate
                least[at] = min(least[at], usd)
    return least
