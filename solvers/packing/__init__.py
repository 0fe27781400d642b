"""Packing: items into bins with a proof, replicas onto nodes, tasks onto hosts as they come, moves that free hosts."""

from __future__ import annotations

from solvers.packing.bins import pack_bins
from solvers.packing.consolidation import Consolidation, Move, Site, Tenant, consolidate
from solvers.packing.dive import Effort
from solvers.packing.fragmentation import Task, UsableByMany, UsableByOne
from solvers.packing.items import BinType, PackedBin, Packing
from solvers.packing.online import Host, OnlinePlacer, Spot
from solvers.packing.rack_ledger import NodeRoom, ReplicaKind
from solvers.packing.replicas import Placing, place_replicas

__all__ = [
    "BinType",
    "Consolidation",
    "Effort",
    "Host",
    "Move",
    "NodeRoom",
    "OnlinePlacer",
    "PackedBin",
    "Packing",
    "Placing",
    "ReplicaKind",
    "Site",
    "Spot",
    "Task",
    "Tenant",
    "UsableByMany",
    "UsableByOne",
    "consolidate",
    "pack_bins",
    "place_replicas",
]
