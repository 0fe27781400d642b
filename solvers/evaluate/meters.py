"""What the replicas of one place did and drew."""

from __future__ import annotations

from dataclasses import dataclass, field

from solvers.simulate import GapHistogram, ReplicaView


@dataclass(slots=True, kw_only=True)
class Meter:
    """Totals of one place: what its replicas did and drew so far."""

    joules: float = 0.0
    gpu_s: float = 0.0
    busy_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    gaps: GapHistogram = field(default_factory=GapHistogram)

    def add(self, view: ReplicaView, gpu_s: float) -> None:
        """Count one replica in, as it stands."""
        self.joules += view.energy_joules
        self.gpu_s += gpu_s
        self.busy_s += view.busy_s
        self.prompt_tokens += view.prompt_tokens
        self.cached_tokens += view.cached_tokens
        self.output_tokens += view.output_tokens
        self.preemptions += view.preemptions
        self.gaps.merge(view.gaps)

    def merge(self, other: Meter) -> None:
        """Add the totals of ``other``."""
        self.joules += other.joules
        self.gpu_s += other.gpu_s
        self.busy_s += other.busy_s
        self.prompt_tokens += other.prompt_tokens
        self.cached_tokens += other.cached_tokens
        self.output_tokens += other.output_tokens
        self.preemptions += other.preemptions
        self.gaps.merge(other.gaps)

    def minus(self, earlier: Meter) -> Meter:
        """What was counted since ``earlier``."""
        return Meter(
            joules=self.joules - earlier.joules,
            gpu_s=self.gpu_s - earlier.gpu_s,
            busy_s=self.busy_s - earlier.busy_s,
            prompt_tokens=self.prompt_tokens - earlier.prompt_tokens,
            cached_tokens=self.cached_tokens - earlier.cached_tokens,
            output_tokens=self.output_tokens - earlier.output_tokens,
            preemptions=self.preemptions - earlier.preemptions,
            gaps=self.gaps.minus(earlier.gaps),
        )
