"""Packing: tasks onto hosts as they come, and what is lost to fragmentation."""

from __future__ import annotations

from solvers.packing.fragmentation import Task, UsableByMany, UsableByOne
from solvers.packing.online import Host, OnlinePlacer, Spot

__all__ = ["Host", "OnlinePlacer", "Spot", "Task", "UsableByMany", "UsableByOne"]
