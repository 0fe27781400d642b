"""What Kubernetes' horizontal autoscaler does with a proposed count: tolerance, stabilisation, pace, bounds.

Source: kubernetes.io, "Horizontal Pod Autoscaling", algorithm details and configurable scaling behavior (autoscaling/v2
defaults); names here are those of the API.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

SYNC_PERIOD_S = 15.0  # --horizontal-pod-autoscaler-sync-period
TOLERANCE = 0.1  # --horizontal-pod-autoscaler-tolerance
DOWNSCALE_STABILIZATION_S = 300.0  # scaleDown.stabilizationWindowSeconds
UP_PODS, UP_RATIO = 4, 1.0  # scaleUp.policies: the larger of 4 pods and 100 % in 15 s


@dataclass(slots=True, kw_only=True)
class Autoscaler:
    """The autoscaler of one target: remembers its recommendations."""

    least: int
    most: int
    recommended: deque[tuple[float, int]] = field(default_factory=deque)

    def settle(self, now_s: float, current: int, proposed: int) -> int:
        """Bound a proposal and let it fall only to the largest recommendation of the stabilisation window."""
        self.recommended.append((now_s, proposed))
        while self.recommended[0][0] < now_s - DOWNSCALE_STABILIZATION_S:
            self.recommended.popleft()
        if proposed < current:
            proposed = min(current, max(count for _, count in self.recommended))
        pace = max(current + UP_PODS, int(current * (1.0 + UP_RATIO)))
        return max(self.least, min(self.most, pace, proposed))


def is_tolerated(ratio: float) -> bool:
    """True when the metric is so near to its target that nothing is done."""
    return abs(ratio - 1.0) <= TOLERANCE
