"""Few sizes instead of many: tokens stay what they are, coefficients stay close, and how close is said."""

from __future__ import annotations

import numpy as np
import pytest

from solvers.buckets import FINEST_BUCKETS, LEAST_BUCKETS, MOST_BUCKETS, Mix, cut_sizes
from solvers.engine import Role
from solvers.errors import InvalidInput
from solvers.sizing import Capacity, replica_capacity
from solvers.workload import SizeBucket
from tests import fleets

PROFILES = [fleets.profile("chat", name, 1, 8.0) for name in ("h100-sxm", "l40s")]
SLOS = fleets.slos(ttft_s=2.0, itl_s=0.08)


def coefficients(mix: Mix) -> list[float]:
    """Capacity of every role on two classes, alone and in a pool of eight."""
    found = []
    for profile in PROFILES:
        for role in Role:
            for replicas in (1, 8):
                sized = replica_capacity(profile, role, mix, SLOS, pool_replicas=replicas)
                found.append(sized.requests_per_s if isinstance(sized, Capacity) else 0.0)
    return found


def drawn(seed: int, count: int = 3000) -> tuple[list[int], list[int]]:
    """Sizes with long tails, outputs that grow with prompts."""
    rng = np.random.default_rng(seed)
    prompts = np.clip(rng.lognormal(6.2, 0.9, count), 16, 8000)
    outputs = np.clip(rng.lognormal(4.8, 0.6, count) * (prompts / 500.0) ** 0.2, 4, 2000)
    return prompts.astype(int).tolist(), outputs.astype(int).tolist()


@pytest.mark.parametrize("seed", range(4))
def test_a_few_buckets_size_like_the_finest_cut_and_the_error_is_what_is_said(seed: int) -> None:
    prompts, outputs = drawn(seed)
    cut = cut_sizes(prompts, outputs, coefficients)
    assert LEAST_BUCKETS <= len(cut.mix) <= MOST_BUCKETS
    assert cut.finest == FINEST_BUCKETS
    assert cut.error_ratio <= 0.15
    assert sum(bucket.weight_ratio for bucket in cut.mix) == pytest.approx(1.0)
    assert sum(b.weight_ratio * b.prompt_tokens for b in cut.mix) == pytest.approx(np.mean(prompts), rel=1e-2)
    assert sum(b.weight_ratio * b.output_tokens for b in cut.mix) == pytest.approx(np.mean(outputs), rel=1e-2)


def test_the_error_is_measured_against_all_sizes_one_by_one() -> None:
    """Forty distinct sizes are their own finest cut: the stated error is the true one."""
    rng = np.random.default_rng(5)
    prompts = sorted({int(n) for n in rng.lognormal(6.0, 1.0, 40)})
    outputs = [100 + 5 * (n % 7) for n in prompts]
    weights = rng.uniform(0.1, 1.0, len(prompts)).tolist()
    cut = cut_sizes(prompts, outputs, coefficients, weights=weights)
    every = cut_sizes(prompts, outputs, lambda mix: [1.0], weights=weights)
    assert cut.finest == len(prompts) == every.finest
    total = sum(weights)

    exact = tuple(
        SizeBucket(prompt_tokens=p, output_tokens=o, weight_ratio=w / total)
        for p, o, w in zip(prompts, outputs, weights, strict=True)
    )
    pairs = zip(coefficients(cut.mix), coefficients(exact), strict=True)
    true = max(abs(a - b) / max(a, b) for a, b in pairs if max(a, b) > 0.0)
    assert cut.error_ratio == pytest.approx(true, rel=1e-9)


def test_more_buckets_are_taken_only_where_they_are_needed() -> None:
    prompts, outputs = drawn(1)
    loose = cut_sizes(prompts, outputs, coefficients, tolerance_ratio=1.0)
    tight = cut_sizes(prompts, outputs, coefficients, tolerance_ratio=0.0)
    assert len(loose.mix) == LEAST_BUCKETS
    assert len(tight.mix) > LEAST_BUCKETS
    assert tight.error_ratio <= loose.error_ratio


def test_what_is_alike_does_not_depend_on_how_long_answers_are_beside_prompts() -> None:
    """Prompts and outputs count by how far they spread, not by tokens: the same requests come together."""
    prompts, outputs = drawn(2)
    cuts = [cut_sizes(prompts, [times * n for n in outputs], lambda mix: [1.0]) for times in (1, 40)]
    parts = [[(bucket.prompt_tokens, round(bucket.weight_ratio, 9)) for bucket in cut.mix] for cut in cuts]
    assert len(parts[0]) == LEAST_BUCKETS
    assert parts[0] == parts[1]


def test_a_size_or_two_are_kept_as_they_are() -> None:
    same = cut_sizes([100] * 50, [20] * 50, coefficients)
    assert [(b.prompt_tokens, b.output_tokens, b.weight_ratio) for b in same.mix] == [(100, 20, 1.0)]
    assert (same.error_ratio, same.finest) == (0.0, 1)
    two = cut_sizes([100, 4000], [20, 200], coefficients, weights=[3.0, 1.0])
    assert [(b.prompt_tokens, b.weight_ratio) for b in two.mix] == [(100, 0.75), (4000, 0.25)]


@pytest.mark.parametrize(
    ("prompts", "weights"),
    [([], None), ([0], None), ([10], [float("nan")]), ([10], [-1.0]), ([10], [0.0]), ([10], [1.0, 2.0])],
)
def test_sizes_that_mean_nothing_are_refused(prompts: list[int], weights: list[float] | None) -> None:
    with pytest.raises(InvalidInput):
        cut_sizes(prompts, [10] * len(prompts), coefficients, weights=weights)
