"""One simulated cluster for the whole test run, brought back to its start after every test that used it."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import hypothesis
import pytest

from tests.simcluster.assets import AssetsError
from tests.simcluster.cluster import SimCluster

_FIXTURES = frozenset({"simcluster", "fresh_cluster"})

# Every run tries the same examples, however long a busy machine takes for one; ``--hypothesis-profile=search`` tries
# new ones.
_ANY_PACE = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("same", _ANY_PACE, derandomize=True)
hypothesis.settings.register_profile("search", _ANY_PACE, derandomize=False)
hypothesis.settings.load_profile("same")


class SharedCluster:
    """Started when first asked for; one that cannot be brought back to its start is replaced by a new one."""

    def __init__(self) -> None:
        self._cluster: SimCluster | None = None

    def get(self) -> SimCluster:
        if self._cluster is None:
            self._cluster = start_or_fail()
        return self._cluster

    def reset(self) -> None:
        try:
            self.get().reset()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None


def start_or_fail() -> SimCluster:
    """Start a cluster; without its binaries a test fails and says what to do, and is never skipped."""
    try:
        return SimCluster.start()
    except AssetsError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[SharedCluster]:
    """Hold the cluster behind `simcluster`; tests use that."""
    shared = SharedCluster()
    yield shared
    shared.close()


@pytest.fixture
def simcluster(shared_cluster: SharedCluster) -> Iterator[SimCluster]:
    """A cluster as it is after its start: no nodes, no workloads, every component running.

    It is the same one for the whole run: afterwards what the test made is deleted, and what it stopped is started.
    """
    yield shared_cluster.get()
    shared_cluster.reset()


@pytest.fixture
def fresh_cluster() -> Iterator[SimCluster]:
    """A cluster of its own for one test, which may break it; four seconds to start."""
    with start_or_fail() as cluster:
        yield cluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that asks for a cluster, so that `-m "not cluster"` needs no binaries."""
    for item in items:
        if _FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.cluster)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of each component's log beside the failure of a test that used a cluster."""
    report = yield
    arguments = getattr(item, "funcargs", {})
    cluster = next((arguments[name] for name in _FIXTURES if name in arguments), None)
    if report.failed and isinstance(cluster, SimCluster) and cluster.folder.is_dir():
        for component in cluster.pids():
            report.sections.append((f"log of {component}", cluster.log_tail(component, 8)))
    return report
