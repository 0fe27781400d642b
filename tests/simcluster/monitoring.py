"""A Prometheus server with a list of static scrape jobs that can be changed while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3
import yaml

from tests.simcluster.poll import wait_until


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrapeJob:
    """One thing to scrape.

    Parameters
    ----------
    name : str
        The ``job`` label.
    url : str
        Such as ``http://127.0.0.1:9400/metrics``; no path means ``/metrics``.
    labels : mapping
        Put on every series.
    honor_labels : bool
        On a conflict the scraped label wins, rather than becoming ``exported_...``.
    interval_s : float, s
    """

    name: str
    url: str
    labels: Mapping[str, str] = field(default_factory=dict)
    honor_labels: bool = False
    interval_s: float = 1.0

    def config(self) -> dict[str, Any]:
        """Return the job as an entry of ``scrape_configs``."""
        parts = urlsplit(self.url)
        return {
            "job_name": self.name,
            "scheme": parts.scheme,
            "metrics_path": parts.path or "/metrics",
            "honor_labels": self.honor_labels,
            "scrape_interval": f"{round(self.interval_s * 1000)}ms",
            "scrape_timeout": f"{round(self.interval_s * 1000)}ms",
            "static_configs": [{"targets": [parts.netloc], "labels": dict(self.labels)}],
        }


class Monitoring:
    """Configures and asks one Prometheus server; its process is the cluster's."""

    def __init__(self, config_file: Path, port: int) -> None:
        self.config_file = config_file
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._pool = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(10.0))
        self.write(())

    def close(self) -> None:
        self._pool.clear()

    def write(self, jobs: Iterable[ScrapeJob]) -> None:
        """Write the configuration; a running server reads it at `reload` only."""
        self.config_file.write_text(yaml.safe_dump({"scrape_configs": [job.config() for job in jobs]}))

    def reload(self) -> None:
        """Make the running server read its configuration again."""
        answer = self._pool.request("POST", f"{self.url}/-/reload")
        if answer.status != 200:
            raise ValueError(f"Prometheus refused {self.config_file}: {answer.data.decode(errors='replace')}")

    def is_ready(self) -> bool:
        return answers_ok(self._pool, f"{self.url}/-/ready")

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the current value of each series of an instant query, as ``{"metric": ..., "value": [time, text]}``."""
        answer = self._pool.request("GET", f"{self.url}/api/v1/query?{urlencode({'query': expression})}").json()
        if answer["status"] != "success":
            raise ValueError(f"{expression}: {answer['error']}")
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def wait_for(self, expression: str, *, timeout_s: float = 30.0) -> list[dict[str, Any]]:
        """Return the answer to a query once it has one."""
        return wait_until(lambda: self.query(expression), f"an answer to {expression}", timeout_s=timeout_s)


def answers_ok(pool: urllib3.PoolManager, url: str) -> bool:
    """Say whether a GET yields status 200; a refused connection is a no."""
    try:
        return pool.request("GET", url).status == 200
    except urllib3.exceptions.HTTPError:
        return False
