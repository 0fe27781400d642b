"""Hold the simulation against the step-by-step truth on many random fleets: ``--fleets 2000 [--seed 0] [-o json]``.

Each fleet has replicas that come late, drain, fail and change their power cap, shared links, domains that pair over
links between them in changing proportions, one of four ways to route, prefix caches, a gateway that gives up, clients
that ask again. Every token of every request must come at the very same picosecond, every energy be the same nanojoule;
where numba is there the compiled kernel must agree with the plain one to the byte. The exit code is 1 when
any fleet differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter

from solvers.simulate.kernel.compiled import is_available
from tests.sim_cases import random_case, simulated
from tests.sim_oracle import compare
from tests.test_simulate_compiled import digest

TOLD = 100  # fleets between two lines of progress


def differs(seed: int, *, compiled: bool) -> str:
    """What is wrong with one fleet; empty when nothing is."""
    if compiled and digest(simulated(random_case(seed))) != digest(simulated(random_case(seed), compiled=True)):
        return f"seed {seed}: plain and compiled differ"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fleets", type=int, default=2000, metavar="N", help="random fleets (default 2000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the first one (default 0)")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    args = parser.parse_args()
    seen: Counter[str] = Counter()
    wrong: list[str] = []
    began_s = time.process_time()
    for done, seed in enumerate(range(args.seed, args.seed + args.fleets), start=1):
        try:
            seen += compare(seed)
        except AssertionError as difference:
            wrong.append(f"seed {seed}: {difference}")
        if problem := differs(seed, compiled=is_available()):
            wrong.append(problem)
        if done % TOLD == 0:
            print(f"  {done} fleets, {len(wrong)} differ", file=sys.stderr)
    found = {"fleets": args.fleets, "compiledToo": is_available(), "differ": wrong, **seen}
    if args.output == "json":
        print(json.dumps({**found, "cpuSeconds": round(time.process_time() - began_s, 1)}, indent=2))
    else:
        happened = ", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in sorted(seen.items()))
        print(f"{args.fleets} fleets, {len(wrong)} differ; {time.process_time() - began_s:.0f} s CPU")
        print(f"in them: {happened}", *wrong[:20], sep="\n")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
