"""Which replicas leave when a pool shrinks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from solvers.fleet import Replica, ReplicaState

LEAVING_ORDER = {
    ReplicaState.PENDING: 0,
    ReplicaState.LOST: 1,
    ReplicaState.STARTING: 2,
    ReplicaState.READY: 3,
}
"""What serves least leaves first; the ReplicaSet controller ranks the same way, so that both pick the same pods."""


def choose_leaving(replicas: Sequence[Replica], count: int) -> tuple[Replica, ...]:
    """Choose which replicas of one pool at one location leave.

    Not placed first, then not Ready, then the fewest outstanding requests, then those on the node with the fewest
    replicas of this pool (that node is emptied soonest), then the youngest, then by name.

    Parameters
    ----------
    replicas : sequence of Replica
        The pool's replicas; those already leaving are passed over.
    count : int
        How many to choose; more than there are chooses all, less than one none.

    Returns
    -------
    tuple of Replica
        In leaving order: a smaller ``count`` chooses a prefix of what a larger one chooses.
    """
    staying = [replica for replica in replicas if replica.state in LEAVING_ORDER]
    on_node = Counter(replica.node for replica in staying)

    def rank(replica: Replica) -> tuple[int, float, int, str, float, str]:
        state = LEAVING_ORDER[replica.state]
        crowd = on_node[replica.node]
        return state, replica.outstanding_requests, crowd, replica.node or "", replica.age_s, replica.name

    return tuple(sorted(staying, key=rank)[: max(0, count)])
