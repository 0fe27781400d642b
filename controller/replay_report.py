"""``penstock replay --report``: one HTML page that stands alone, with plots a person can read.

Plots are SVG inside the page (matplotlib, the ``report`` extra); nothing is fetched when it is opened. The same runs
make the same page.
"""

from __future__ import annotations

import html
import io
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from controller.replay_output import WORDS, Run, compared_sections, event_words, run_sections
from solvers.errors import InvalidInput
from solvers.evaluate import Summary
from solvers.evaluate.incidents import Happened, What
from solvers.evaluate.summary import TTFT_PARTS, WindowSummary
from solvers.workload import SloMetric

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
pre { background: #f4f6f8; padding: .8rem 1rem; overflow-x: auto; font-size: 13px; line-height: 1.35; }
figure { margin: 1.5rem 0; } figcaption { color: #555; font-size: 14px; }
svg { max-width: 100%; height: auto; }
"""
COLOURS = ("#1f5f99", "#c2571a", "#3a7d44", "#7a4a9e", "#a8841a", "#5b6770", "#b03a5b")
EVENT_COLOURS = {What.FAIL: "#c00000", What.DRAIN: "#a8841a", What.START: "#3a7d44", What.CAP: "#7a4a9e"}
LIMIT = {"color": "#c00000", "linestyle": "--", "linewidth": 1.2}


def write_report(path: Path, runs: Sequence[Run]) -> None:
    """Write the page.

    Raises
    ------
    InvalidInput
        When matplotlib is missing or the file cannot be written.
    """
    try:
        path.write_text("\n".join(_page(runs)), encoding="utf-8")
    except OSError as error:
        raise InvalidInput(
            "--report", "", f"cannot be written: {error}", "name a file in a folder that exists"
        ) from error


def _page(runs: Sequence[Run]) -> Iterator[str]:
    title = "Penstock replay: " + ", ".join(dict.fromkeys(job.trace for job, _ in runs))
    yield f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
    yield f"<style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
    if len(runs) > 1:
        yield "<h2>Runs side by side</h2>" + "".join(_preformatted(text) for text in compared_sections(runs))
        yield _figure("Cost against requests inside all their SLOs; up and to the left is better.", _compared, runs)
    for job, summary in runs:
        yield f"<h2>{html.escape(f'{job.policy} on {job.trace}, plan {job.plan_name}, seed {job.seed}')}</h2>"
        yield from _run(summary)
    yield "</body></html>"


def _run(summary: Summary) -> Iterator[str]:
    yield "".join(_preformatted(text) for text in run_sections(summary))
    for service, windows in groupby(summary.windows, key=lambda w: w.service):
        rows = list(windows)
        yield f"<h3>{html.escape(service)}</h3>"
        events = " Dotted: events." if _struck(summary, service) else ""
        ttft = "Time to first token by window of arrival, with its SLO."
        yield _figure(ttft + events, _ttft, summary, service, rows)
        yield _figure("Gaps between tokens by window, with their SLO." + events, _itl, summary, service, rows)
        served = "Requests asked, and those served inside all SLOs."
        yield _figure(served + events, _goodput, summary, service, rows)
        yield _figure("What time to first token is made of.", _parts, summary, service)
        held = "GPUs held and watts drawn by the service's replicas."
        yield _figure(held + events, _power, summary, service, rows)
    if summary.domains:
        yield _figure("Highest mean watts of a window in each power domain, and what was usable.", _domains, summary)


def _preformatted(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"


def _figure(caption: str, draw: Callable[..., None], *what: Any) -> str:
    """One plot as SVG; ids are salted with a constant, so that equal plots are equal text."""
    matplotlib = _matplotlib()
    with matplotlib.rc_context({"svg.hashsalt": "penstock", "svg.fonttype": "none", "font.size": 10}):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.2), layout="constrained")
        draw(figure, *what)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    svg = out.getvalue()
    return f"<figure>{svg[svg.index('<svg') :]}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise InvalidInput(
            "--report", "", "needs matplotlib, which is not installed", "pip install 'penstock[report]'"
        ) from error
    return matplotlib


def _axes(figure: Any, title: str, x: str, y: str) -> Any:
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True, color="#e3e6ea", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return axes


def _legend(figure: Any) -> None:
    """Beside the axes, where it hides nothing."""
    figure.legend(loc="outside right upper", frameon=False)


def _over_time(figure: Any, title: str, y: str) -> Any:
    return _axes(figure, title, "time (s)", y)


def _line(axes: Any, rows: Sequence[WindowSummary], values: Sequence[float], label: str, colour: int) -> None:
    middles = [(row.start_s + row.end_s) / 2 for row in rows]
    axes.plot(middles, values, label=label, color=COLOURS[colour], marker="o", markersize=3, linewidth=1.4)


def _limits(axes: Any, summary: Summary, service: str, metric: SloMetric) -> None:
    for kept in summary.services[service].slos:
        if kept.slo.metric is metric:
            label = f"SLO p{100 * kept.slo.percentile_ratio:g}: {1000 * kept.slo.limit_s:g} ms"
            axes.axhline(1000 * kept.slo.limit_s, label=label, **LIMIT)


def _struck(summary: Summary, service: str) -> list[Happened]:
    """Events that hit replicas of a service, or found none to hit."""
    return [
        each
        for each in summary.incidents
        if not each.replicas or any(name.startswith(service + "/") for name in each.replicas)
    ]


def _marks(axes: Any, summary: Summary, service: str) -> None:
    """Draw a dotted line at each event; equal ones share a word in the legend."""
    said: dict[str, str] = {}
    for each in _struck(summary, service):
        words = event_words(each.incident)
        colour = EVENT_COLOURS[each.incident.what]
        axes.axvline(
            each.incident.at_s, color=colour, linestyle=":", linewidth=1.3, label=said.setdefault(words, words)
        )
        said[words] = "_"


def _ttft(figure: Any, summary: Summary, service: str, rows: Sequence[WindowSummary]) -> None:
    axes = _over_time(figure, f"Time to first token, {service}", "TTFT (ms)")
    _line(axes, rows, [1000 * row.ttft_p95_s for row in rows], "p95", 0)
    _line(axes, rows, [1000 * row.ttft_p50_s for row in rows], "median", 2)
    _limits(axes, summary, service, SloMetric.TTFT)
    _marks(axes, summary, service)
    if any(row.ttft_p95_s > 10 * max(row.ttft_p50_s, 1e-6) for row in rows):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    _legend(figure)


def _itl(figure: Any, summary: Summary, service: str, rows: Sequence[WindowSummary]) -> None:
    axes = _over_time(figure, f"Inter-token latency, {service}", "ITL (ms)")
    _line(axes, rows, [1000 * row.itl_p95_s for row in rows], "p95", 0)
    _limits(axes, summary, service, SloMetric.ITL)
    _marks(axes, summary, service)
    axes.set_ylim(bottom=0)
    _legend(figure)


def _goodput(figure: Any, summary: Summary, service: str, rows: Sequence[WindowSummary]) -> None:
    axes = _over_time(figure, "Load and goodput", "requests per second")
    _line(axes, rows, [row.requests / (row.end_s - row.start_s) for row in rows], "asked", 5)
    _line(axes, rows, [row.goodput_requests_per_s for row in rows], "inside all SLOs", 2)
    _marks(axes, summary, service)
    axes.set_ylim(bottom=0)
    _legend(figure)


def _parts(figure: Any, summary: Summary, service: str) -> None:
    axes = _axes(figure, "Parts of time to first token", "ms", "")
    latencies = summary.services[service].latencies_s
    names = [WORDS[part].strip() for part in TTFT_PARTS]
    for offset, (ratio, colour) in enumerate(((0.5, 2), (0.95, 0), (0.99, 1))):
        widths = [1000 * latencies[part][ratio].value for part in TTFT_PARTS]
        places = [i + 0.25 * (1 - offset) for i in range(len(names))]
        known = [0.0 if math.isnan(width) else width for width in widths]
        axes.barh(places, known, height=0.22, color=COLOURS[colour], label=f"p{100 * ratio:g}")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    _legend(figure)


def _power(figure: Any, summary: Summary, service: str, rows: Sequence[WindowSummary]) -> None:
    axes = _over_time(figure, "GPUs and power", "GPUs")
    _line(axes, rows, [row.gpus for row in rows], "GPUs held", 0)
    axes.set_ylim(bottom=0)
    _marks(axes, summary, service)
    other = axes.twinx()
    other.spines["top"].set_visible(False)
    other.set_ylabel("kW")
    _line(other, rows, [row.watts / 1000 for row in rows], "kW drawn", 1)
    other.set_ylim(bottom=0)
    _legend(figure)


def _domains(figure: Any, summary: Summary) -> None:
    axes = _axes(figure, "Power domains", "kW", "")
    names = [domain.domain for domain in summary.domains]
    axes.barh(names, [d.usable_watts / 1000 for d in summary.domains], color="#dfe4ea", label="usable")
    axes.barh(names, [d.peak_watts / 1000 for d in summary.domains], height=0.4, color=COLOURS[1], label="peak")
    axes.invert_yaxis()
    _legend(figure)


def _compared(figure: Any, runs: Sequence[Run]) -> None:
    axes = _axes(figure, "Policies side by side", "USD per hour", "requests inside all SLOs (%)")
    names = list(dict.fromkeys(job.policy for job, _ in runs))
    for index, name in enumerate(names):
        mine = [summary for job, summary in runs if job.policy == name]
        axes.scatter(
            [s.cost_usd_per_hour for s in mine],
            [100 * s.in_slo_ratio for s in mine],
            label=name,
            color=COLOURS[index % len(COLOURS)],
            s=30,
        )
    _legend(figure)
