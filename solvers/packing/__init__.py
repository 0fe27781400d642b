"""Packing: items into bins with a proof, tasks onto hosts as they come, and what is lost to fragmentation."""

from __future__ import annotations

from solvers.packing.bins import pack_bins
from solvers.packing.consolidation import Consolidation, Move, Site, Tenant, consolidate
from solvers.packing.dive import Effort
from solvers.packing.fragmentation import Task, UsableByMany, UsableByOne
from solvers.packing.items import BinType, PackedBin, Packing
from solvers.packing.online import Host, OnlinePlacer, Spot

__all__ = [
    "BinType",
    "Consolidation",
    "Effort",
    "Host",
    "Move",
    "OnlinePlacer",
    "PackedBin",
    "Packing",
    "Site",
    "Spot",
    "Task",
    "Tenant",
    "UsableByMany",
    "UsableByOne",
    "consolidate",
    "pack_bins",
]
