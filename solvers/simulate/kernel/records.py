"""Records of the kernel: what there is to know of each request, replica, link, service, and of the whole.

Every field is a whole number: ticks, tokens, indices, counts; -1 stands for none or not yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

NONE = -1
NEVER = 1 << 62
MIXED, PREFILL, DECODE = 0, 1, 2  # roles; a service has a group of replicas for each
WAITING, FINISHED, REJECTED, TIMED_OUT = 0, 1, 2, 3  # what became of a request
LEAST_WORK, LEAST_LOADED, WEIGHTED, PREFIX_AWARE = 0, 1, 2, 3  # how a service routes
OWN, OUT, INTO = 0, 1, 2  # legs of a transfer: the link of its prefill replica, those that leave and enter a place
METER_TICKS = 1_000_000  # energy is counted in milliwatt microseconds, which 64 bits hold for days


@dataclass(slots=True)
class Request:
    """A request; ``next`` chains it in whatever queue it stands, ``due`` is its end on a link.

    ``legs`` of its transfer are not over yet (none: cut off); what begins with ``out`` or ``into`` is for the links
    that it crosses on its ``way``.
    ``kv`` tokens are reserved for it, of which ``hits`` blocks are pinned in the prefix cache; ``cached`` tokens were
    found there at its first admission. Charges are what the router counts for it on its replicas.
    """

    serial: int = 0
    arrival: int = 0
    service: int = 0
    prompt: int = 0
    output: int = 0
    client: int = NONE
    path: int = NONE
    left: int = 0
    emitted: int = 0
    kv: int = 0
    hits: int = 0
    order: int = 0
    next: int = NONE
    due: int = NEVER
    way: int = NONE
    legs: int = 0
    out_next: int = NONE
    out_due: int = NEVER
    into_next: int = NONE
    into_due: int = NEVER
    prefill_replica: int = NONE
    replica: int = NONE
    prompt_charge: int = 0
    sequence_charge: int = 0
    routed: int = NONE
    prefill_start: int = NONE
    prefill_end: int = NONE
    transferred: int = NONE
    first_token: int = NONE
    last_token: int = NONE
    end: int = NONE
    status: int = WAITING
    cached: int = 0
    late_at_join: int = 0
    late_gaps: int = 0
    preemptions: int = 0
    reroutes: int = 0


@dataclass(slots=True)
class Replica:
    """An engine. A run of ``run_steps`` steps of an unchanged batch began at ``run_start``; see ``engine``.

    ``kv`` tokens are held by requests, ``spare`` ones by blocks of the prefix cache that nobody uses now. ``row`` is
    where its sequences begin in ``World.leave``, ``cache`` where its blocks do (none: no cache). ``prompt_part`` of a
    step is for prompts; ``whole`` is what a step stretched by a new cap would take under that alone. ``given`` counts
    the prompt tokens ever sent there.
    """

    service: int = 0
    role: int = MIXED
    group: int = 0
    table: int = 0
    link: int = NONE
    transfer: int = 0
    row: int = 0
    cache: int = NONE
    stride: int = 1
    is_ready: int = 0
    is_draining: int = 0
    is_gone: int = 0
    slot: int = NONE
    load: int = 0
    given: int = 0
    head: int = NONE
    tail: int = NONE
    queued: int = 0
    active: int = 0
    fresh: int = 0
    fresh_head: int = NONE
    context: int = 0
    kv: int = 0
    spare: int = 0
    oldest: int = NONE
    newest: int = NONE
    held: int = 0
    orders: int = 0
    steps: int = 0
    run_start: int = 0
    run_steps: int = 0
    step: int = 0
    growth: int = 0
    prompt_part: int = 0
    whole: int = 0
    chunk: int = 0
    finishing: int = 0
    is_beyond: int = 0
    milliwatts: int = 0
    metered: int = 0
    energy: int = 0
    busy: int = 0
    late_limit: int = NEVER
    late_steps: int = 0
    late_gaps: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    far_steps: int = 0
    far_prompts: int = 0


@dataclass(slots=True)
class Table:
    """Where the curves of a profile lie in ``World.knots`` and its companions, and its constants.

    ``behind`` is the first curve of prompts behind a cached prefix, one for each of ``prefixes``; these, and watts by
    batch, are in ``World.numbers``.
    """

    line: int = 0
    line_knots: int = 0
    last_prompt: int = 0
    prefixes: int = 0
    first_prefix: int = 0
    behind: int = 0
    rows: int = 0
    row_knots: int = 0
    watts: int = 0
    idle_milliwatts: int = 0
    prefill_milliwatts: int = 0
    max_batch: int = 0
    kv_capacity: int = 0
    chunk_tokens: int = 0
    sequence_work: int = 0
    prefill_speed: int = 0
    decode_speed: int = 0


@dataclass(slots=True)
class Group:
    """Replicas of one role of one service in one domain: ``count`` in use of ``room``, from ``first`` on in
    ``World.members``."""

    service: int = 0
    role: int = MIXED
    first: int = 0
    room: int = 0
    count: int = 0


@dataclass(slots=True)
class Service:
    """A service: how it routes, who waits at its gateway, and prompts computed but bound nowhere (``stranded``).

    Its groups are at ``home`` plus their role. One that says which of its replicas pair has ways from ``first_way`` on.
    """

    policy: int = LEAST_WORK
    home: int = 0
    first_way: int = NONE
    turn: int = 0
    late_limit: int = NEVER
    head: int = NONE
    tail: int = NONE
    queued: int = 0
    stranded_head: int = NONE
    stranded_tail: int = NONE
    submitted: int = 0
    finished: int = 0
    rejected: int = 0
    timed_out: int = 0
    rerouted: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0


@dataclass(slots=True)
class Way:
    """Two groups that pair, the same one twice for mixed replicas, and what lies between them.

    Each has its turn after ``stride``, the next at ``turn``; with no stride only when no other one is open. A token
    takes ``out_transfer`` and ``into_transfer`` ticks of the links that it crosses.
    """

    giver: int = 0
    receiver: int = 0
    stride: int = 0
    turn: int = 0
    next: int = NONE
    out_link: int = NONE
    out_transfer: int = 0
    into_link: int = NONE
    into_transfer: int = 0


@dataclass(slots=True)
class Link:
    """A link: transfers one after the other, or (``is_shared``) all at once in equal shares.

    The chain from ``head`` is sorted by ``Request.due``: a time, or on a shared link what each transfer has been
    served by its end, where ``served`` is what each has been served at ``at``.
    """

    is_shared: int = 0
    leg: int = OWN
    head: int = NONE
    free: int = 0
    active: int = 0
    served: int = 0
    at: int = 0


@dataclass(slots=True)
class Client:
    """One of the clients that ask again when answered; ``source`` has their requests."""

    source: int = 0


@dataclass(slots=True)
class Source:
    """Requests of a set of clients: the next one and where they end, and the pause before each."""

    next: int = 0
    end: int = 0
    think: int = 0


@dataclass(slots=True)
class Run:
    """A row of the log: ``steps`` steps of ``batch`` sequences, the i-th in ``step + i * growth`` ticks.

    The first step of ``fresh`` of them yields a first token, so it is no gap of theirs.
    """

    replica: int = 0
    start: int = 0
    step: int = 0
    growth: int = 0
    steps: int = 0
    batch: int = 0
    fresh: int = 0


@dataclass(slots=True)
class FirstToken:
    """A row of the log of first tokens: ticks from arrival, and from routing to the end of the prompt."""

    service: int = 0
    replica: int = 0
    waited: int = 0
    in_engine: int = 0


@dataclass(slots=True)
class State:
    """The whole: clock, offsets of the kinds of entities on it, options, logs in use, and answers of functions."""

    now: int = 0
    entity: int = 0
    next_arrival: int = 0
    arrivals: int = 0
    replicas: int = 0
    first_client: int = 1
    first_link: int = 1
    first_replica: int = 1
    first_gateway: int = 1
    entities: int = 1
    patience: int = NEVER
    queue_limit: int = NEVER
    block_tokens: int = 0
    record_firsts: int = 0
    runs: int = 0
    runs_room: int = 0
    firsts: int = 0
    ended: int = 0
    lost: int = 0
    giver: int = NONE
    receiver: int = NONE
    way: int = NONE
    events: int = 0


class World(NamedTuple):
    """Everything that the kernel works on. Lists of records, or arrays of them where it runs compiled.

    Not more than 32 of them: compiled functions hand all of it on by value, and with the 33rd array every call that is
    not taken into its caller became so dear that whole runs took three times as long.
    """

    requests: list[Request]
    replicas: list[Replica]
    tables: list[Table]
    groups: list[Group]
    services: list[Service]
    ways: list[Way]
    links: list[Link]
    clients: list[Client]
    sources: list[Source]
    runs: list[Run]
    firsts: list[FirstToken]
    states: list[State]
    knots: list[int]
    values: list[int]
    slopes: list[int]
    numbers: list[int]
    due: list[int]
    soonest: list[int]
    load: list[int]
    lightest: list[int]
    members: list[int]
    leave: list[int]
    member: list[int]
    parent: list[int]
    start: list[int]
    length: list[int]
    cached: list[int]
    users: list[int]
    older: list[int]
    newer: list[int]
    ended: list[int]
    lost: list[int]
