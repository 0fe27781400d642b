"""An explanation in words, for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from solvers.explain.reasons import CapReason, CountReason, DemandRange, KeptBy, PriceSwitch
from solvers.explain.shadow import Loss, ShadowPrice
from solvers.explain.swaps import PoolSwap
from solvers.explain.ways import Alternative, ChosenPool
from solvers.fleet import ANYWHERE
from solvers.plan import Binding, LinkPlan, Relief

if TYPE_CHECKING:
    from solvers.explain import Explanation

ASKED = frozenset({"floor", "pin", "locations"})
"""Limits of what a service asks for; their prices are of one less."""

OWN = ASKED | {"ceiling", "share", "spot"}
"""Limits of one service."""

PART = re.compile(r"/p\d+-(\d+|up)$")
GIGA = 1e9
COUNTED = frozenset({"GPU", "replica", "core"})
"""Units that are said of several as words are; the others are symbols."""
NOTICEABLE_USD = 0.005  # a difference that two decimals show


def lines(e: Explanation) -> Iterator[str]:
    """Say it line by line: what was chosen, why so many, what would change it, what was not taken, what is scarce."""
    served = f"{e.served_requests_per_s:g} of {e.demand_requests_per_s:g} requests/s served"
    yield f"{e.service} ({e.tier}): {served}, {e.usd_per_hour:.2f} USD/h"
    reasons = {reason.pool: reason for reason in e.counts}
    caps = {cap.pool: cap for cap in e.caps}
    swaps = {swap.pool: swap for swap in e.swaps}
    for pool in e.chosen:
        yield from _chosen(pool, reasons.get(pool.pool), caps.get(pool.pool))
        if pool.pool in swaps:
            yield f"    {swap_words(swaps[pool.pool])}"
    if e.demand_range is not None:
        yield f"  {range_words(e.demand_range)}"
    yield from (f"  {link_words(link)}" for link in e.links)
    for way in e.rejected:
        yield from _rejected(way)
    yield from (f"  {switch_words(switch)}" for switch in e.switches)
    told = {(price.limit, price.subject): price for price in e.prices}
    for limit in e.binding:
        if (limit.limit, limit.subject) not in told and _concerns(limit, e.service):
            yield f"  {binding_words(limit)}"
    yield from (f"  {shadow_words(price)}" for price in e.prices)
    yield from (f"  {_loss(loss)}" for loss in e.losses)
    yield from (f"  short because {reason}" for reason in e.short_because)
    if e.relief:
        yield from (f"  {line}" for line in relief_lines(e.relief))
    yield from (f"  cannot serve: {reason}" for reason in e.unfit)


def _concerns(limit: Binding, service: str) -> bool:
    """Limits that services share, and the service's own, worth a cent; what others ask for is no matter of this one."""
    return limit.price_usd_per_hour > NOTICEABLE_USD and (
        limit.limit not in OWN or limit.subject.partition(" ")[0].partition(":")[0] == service
    )


def binding_words(limit: Binding) -> str:
    """Say what a limit without slack is worth: one more of what there is, or one less of what is asked.

    >>> binding_words(Binding(limit="power", subject="rack-1", unit="kW", price_usd_per_hour=1.25))
    'power[rack-1] binds: one more kW is worth 1.25 USD/h'
    >>> binding_words(Binding(limit="floor", subject="team/chat tokens", unit="replica", price_usd_per_hour=2.0))
    'floor[team/chat tokens] binds: asking for one replica less is worth 2.00 USD/h'
    """
    asked = f"asking for one {limit.unit} less" if limit.limit in ASKED else f"one more {limit.unit}"
    return f"{limit.limit}[{limit.subject}] binds: {asked} is worth {limit.price_usd_per_hour:.2f} USD/h"


def _chosen(pool: ChosenPool, reason: CountReason | None, cap: CapReason | None) -> Iterator[str]:
    where = ", ".join(f"{count} at {'any node' if at == ANYWHERE else at}" for at, count in pool.locations)
    spans = f", each on {pool.nodes_per_replica} whole nodes" if pool.nodes_per_replica > 1 else ""
    yield f"  {pool.pool}: {where}{spans}"
    sizes = " of these sizes" if PART.search(pool.pool) else ""
    use = f"{pool.demand_ratio:.0%} of the requests{sizes}, {pool.used_ratio:.0%} of its capacity"
    yield f"    {use}, {pool.usd_per_thousand_requests:.4f} USD per 1000 requests"
    if reason is not None:
        yield f"    {_count(reason)}"
    if cap is not None:
        yield f"    {cap_words(cap)}"


def swap_words(swap: PoolSwap) -> str:
    """Say what another GPU class would cost instead.

    >>> swap = PoolSwap(pool="", instead="team/chat/decode/l40s/tp1", replicas=3, extra_usd_per_hour=0.5,
    ...                 extra_at_scarcity_usd_per_hour=-0.25, blocked_by=("no room",))
    >>> swap_words(swap)
    'or 3 more of team/chat/decode/l40s/tp1: +0.50 USD/h, -0.25 when scarce things are paid for; no room'
    """
    said = f"or {swap.replicas} more of {swap.instead}: {swap.extra_usd_per_hour:+.2f} USD/h"
    if abs(swap.extra_at_scarcity_usd_per_hour - swap.extra_usd_per_hour) > NOTICEABLE_USD:
        said += f", {swap.extra_at_scarcity_usd_per_hour:+.2f} when scarce things are paid for"
    return "; ".join((said, *swap.blocked_by))


def cap_words(cap: CapReason) -> str:
    """Say what the power cap saves, and what a lower one would cost.

    >>> cap = CapReason(pool="", cap_watts=500.0, max_cap_watts=700.0, speed_ratio=0.97, saved_watts=1600.0,
    ...                 worth_usd_per_hour=0.0, lower_cap_watts=400.0, lower_speed_ratio=0.82)
    >>> cap_words(cap)
    'capped at 500 of 700 W: 97% of the speed, 1 600 W less reserved; at 400 W it would carry 82% of that'
    """
    lower = f"at {cap.lower_cap_watts:g} W it would carry {cap.lower_speed_ratio:.0%} of that"
    if cap.cap_watts >= cap.max_cap_watts:
        return f"at its highest power cap, {cap.max_cap_watts:g} W; {lower}"
    worth = f", worth {cap.worth_usd_per_hour:.2f} USD/h to others" if cap.worth_usd_per_hour > 0.0 else ""
    saved = f"{cap.saved_watts:,.0f} W less reserved{worth}".replace(",", " ", 1)
    below = f"; {lower}" if cap.lower_cap_watts else ""
    return f"capped at {cap.cap_watts:g} of {cap.max_cap_watts:g} W: {cap.speed_ratio:.0%} of the speed, {saved}{below}"


def _count(reason: CountReason) -> str:
    fewer = f"one fewer than {reason.replicas}" if reason.replicas > 1 else "without it"
    if reason.kept_by is KeptBy.DEMAND and reason.replicas == 1:
        return f"{fewer} there would be room for {_rate(reason.one_less_serves_requests_per_s)} requests/s"
    if reason.kept_by is KeptBy.DEMAND:
        return f"{fewer} would leave room for {_rate(reason.one_less_serves_requests_per_s)} requests/s"
    if reason.kept_by is KeptBy.FLOOR:
        return f"{fewer}: {reason.kept_by} would be broken"
    return f"{fewer} all would be served; it is kept because moving costs more or nothing is saved"


def range_words(carried: DemandRange) -> str:
    """Say for which demand the replicas are right."""
    least, most = carried.least_requests_per_s, carried.most_requests_per_s
    fewer = f"; at {_rate(least)} one could go" if least > 0.0 else ""
    return f"the same replicas carry up to {_rate(most)} requests/s{fewer}"


def link_words(link: LinkPlan) -> str:
    """Say what keys and values load a link with.

    >>> both = {"bytes_per_s": 2e9, "outgoing_bytes_per_s": 5e8, "incoming_bytes_per_s": 0.0}
    >>> link_words(LinkPlan(link="up-a", usd_per_hour=0.25, **both))
    'keys and values of all services through link[up-a]: 0.5 GB/s out, 0 in, of 2 each way, 0.25 USD/h'
    """
    out, into, most = (x / GIGA for x in (link.outgoing_bytes_per_s, link.incoming_bytes_per_s, link.bytes_per_s))
    used = f"{_about(out)} GB/s out, {_about(into)} in, of {most:g} each way, {link.usd_per_hour:.2f} USD/h"
    return f"keys and values of all services through link[{link.link}]: {used}"


def _rate(requests_per_s: float) -> str:
    return f"{requests_per_s:.4g}"


def _rejected(way: Alternative) -> Iterator[str]:
    names = " + ".join(f"{count} of {name}" for name, count in way.pools)
    yield f"  rather than {names}: {way.usd_per_hour:.2f} USD/h, {way.extra_usd_per_hour:+.2f} against the plan"
    if abs(way.extra_at_scarcity_usd_per_hour - way.extra_usd_per_hour) > NOTICEABLE_USD:
        yield f"    {way.extra_at_scarcity_usd_per_hour:+.2f} when scarce GPUs and watts are paid for"
    if way.fleet_low_usd_per_hour is not None and way.fleet_high_usd_per_hour is not None:
        cost, expected = (
            usd_range(way.fleet_low_usd_per_hour, way.fleet_high_usd_per_hour),
            way.fleet_expected_usd_per_hour,
        )
        about = f", about {expected:+.2f}," if expected is not None and " to " in cost else ""
        yield f"    {cost}{about} for the whole fleet, decided anew"
    yield from (f"    {block}" for block in way.blocked_by)


def usd_range(low: float, high: float) -> str:
    """Write an interval of money, as one number where it is one.

    >>> usd_range(1.0, 1.001), usd_range(-0.2, 1.5)
    ('+1.00 USD/h', '-0.20 to +1.50 USD/h')
    """
    if high - low <= NOTICEABLE_USD:
        return f"{high:+.2f} USD/h"
    return f"{low:+.2f} to {high:+.2f} USD/h"


def switch_words(switch: PriceSwitch) -> str:
    """Say at which price another way would win."""
    names = " + ".join(f"{count} of {name}" for name, count in switch.pools)
    side = "above" if switch.at_usd_per_hour > switch.now_usd_per_hour else "below"
    price = f"{switch.at_usd_per_hour:.2f} USD/h a GPU (now {switch.now_usd_per_hour:.2f})"
    return f"with {switch.gpu_class} {side} {price}, {names} would be cheaper"


def _loss(loss: Loss) -> str:
    cost = usd_range(loss.low_usd_per_hour, loss.high_usd_per_hour)
    about = f", about {loss.expected_usd_per_hour:+.2f}" if " to " in cost else ""
    short = f"; {', '.join(loss.short)} would be short" if loss.short else ""
    kept = " (services split as they are; another split might cost less)" if loss.keeps_cuts else ""
    return f"{loss.change}: {cost}{about}{short}{kept}"


def relief_lines(rows: Sequence[Relief]) -> Iterator[str]:
    """Say what together would be enough for all that is short, one limit a line."""
    about = "about " if any(row.is_estimate for row in rows) else ""
    cost = sum(row.usd_per_hour for row in rows)
    yield f"all that is short would be served with {about}{cost:.2f} USD/h more of these together:"
    yield from (f"  {relief_row(row)}" for row in rows)


def relief_row(row: Relief) -> str:
    """Say how much more of a limit, what that costs, and what its first unit does alone.

    >>> row = Relief(limit="power", subject="row-a", unit="kW", amount=2.5, usd_per_hour=0.625)
    >>> relief_row(row)
    '2.5 kW more of power[row-a], 0.62 USD/h; only together with the others'
    >>> row = Relief(limit="gpus", subject="row-a/l40s", unit="GPU", amount=8.0, usd_per_hour=7.2, is_estimate=True,
    ...              first_serves_requests_per_s=1.25, first_saves_usd_per_hour=31.5)
    >>> said, _, alone = relief_row(row).partition("; ")
    >>> said
    'about 8 GPUs more of gpus[row-a/l40s], 7.20 USD/h'
    >>> alone
    'the first alone serves about 1.2 requests/s more, saves 31.50 USD/h of penalties'
    """
    about = "about " if row.is_estimate else ""
    unit = row.unit + "s" * (row.unit in COUNTED and row.amount != 1.0)
    asked = f"{about}{row.amount:g} {unit} more of {row.limit}[{row.subject}], {row.usd_per_hour:.2f} USD/h"
    if max(row.first_serves_requests_per_s, row.first_saves_usd_per_hour) <= 0.0:
        return f"{asked}; only together with the others"
    serves = f"serves about {_about(row.first_serves_requests_per_s)} requests/s more, "
    saves = f"saves {row.first_saves_usd_per_hour:.2f} USD/h of penalties"
    return f"{asked}; the first alone {serves if row.first_serves_requests_per_s > 0.0 else ''}{saves}"


def shadow_words(price: ShadowPrice) -> str:
    """Say what a scarce thing is worth, and for how much of it."""
    more = f"one more {price.unit} is worth {price.more_usd_per_hour:.2f} USD/h"
    if price.more_usd_per_hour > 0.0:
        more += f", valid for about {_about(price.more_holds_for)}"
    less = f"one less costs {price.less_usd_per_hour:.2f}, valid for about {_about(price.less_holds_for)}"
    return f"{price.limit}[{price.subject}] binds: {more}; {less}"


def _about(amount: float) -> str:
    """Two digits are all that the search for it tells.

    >>> _about(0.7752), _about(163.4)
    ('0.78', '160')
    """
    return f"{float(f'{amount:.2g}'):g}"
