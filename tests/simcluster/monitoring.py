"""A Prometheus server with a list of static scrape jobs that can be changed while it runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3
import yaml

from tests.simcluster.poll import PATIENCE_S, wait_until


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

    def config(self, targets_file: Path) -> dict[str, Any]:
        """Return the job as an entry of ``scrape_configs`` that takes its target from a file."""
        parts = urlsplit(self.url)
        interval = f"{round(self.interval_s * 1000)}ms"
        return {
            "job_name": self.name,
            "scheme": parts.scheme,
            "metrics_path": parts.path or "/metrics",
            "honor_labels": self.honor_labels,
            "scrape_interval": interval,
            "scrape_timeout": interval,
            "file_sd_configs": [{"files": [str(targets_file)]}],
        }

    def target(self) -> dict[str, Any]:
        """Return the target as an entry of its file."""
        return {"targets": [urlsplit(self.url).netloc], "labels": dict(self.labels)}


class Monitoring:
    """Configures and asks one Prometheus server; its process is the cluster's.

    A job that is no longer wanted stays, without its target: series end at once where their target goes, but linger
    for five minutes where their whole job does.
    """

    def __init__(self, config_file: Path, port: int) -> None:
        self.config_file = config_file
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._jobs: dict[str, ScrapeJob] = {}
        self._pool = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(60.0))
        self.write(())

    def close(self) -> None:
        self._pool.clear()

    def write(self, jobs: Iterable[ScrapeJob]) -> None:
        """Write the configuration; a running server reads it at `reload` only."""
        wanted = {job.name: job for job in jobs}
        self._jobs |= wanted
        files = {name: self.config_file.parent / f"targets-{index}.json" for index, name in enumerate(self._jobs)}
        for name, path in files.items():
            _replace(path, json.dumps([wanted[name].target()] if name in wanted else []))
        configs = [job.config(files[name]) for name, job in self._jobs.items()]
        _replace(self.config_file, yaml.safe_dump({"scrape_configs": configs}))

    def reload(self) -> None:
        """Make the running server read its configuration again."""
        answer = self._pool.request("POST", f"{self.url}/-/reload")
        if answer.status != 200:
            raise ValueError(f"Prometheus refused {self.config_file}: {answer.data.decode(errors='replace')}")

    def is_ready(self) -> bool:
        return answers_ok(self._pool, f"{self.url}/-/ready")

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an instant query, each as ``{"metric": {...}, "value": [time, text]}``."""
        answer = self._pool.request("GET", f"{self.url}/api/v1/query?{urlencode({'query': expression})}").json()
        if answer["status"] != "success":
            raise ValueError(f"{expression}: {answer['error']}")
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def wait_for(self, expression: str, *, timeout_s: float = PATIENCE_S) -> list[dict[str, Any]]:
        """Return the answer to a query once it has one."""
        return wait_until(lambda: self.query(expression), f"an answer to {expression}", timeout_s=timeout_s)


def _replace(path: Path, text: str) -> None:
    """Write a file at once: Prometheus watches some of them and would read half of one."""
    scratch = path.with_suffix(".new")
    scratch.write_text(text)
    scratch.rename(path)


def answers_ok(pool: urllib3.PoolManager, url: str) -> bool:
    """Say whether a GET yields status 200; a refused connection is a no."""
    try:
        return pool.request("GET", url).status == 200
    except urllib3.exceptions.HTTPError:
        return False
