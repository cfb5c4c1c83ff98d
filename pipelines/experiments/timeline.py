"""The timeline of a workflow: when each step ran, and how it ended, for MLflow and the report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pipelines.core import storage
from pipelines.core.step import Outcome
from pipelines.core.tracking import Tracker
from pipelines.experiments.graph import Node, mermaid
from pipelines.experiments.graph_runner import GraphResult
from pipelines.viz.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "steps.json"
MADE, CACHED, FAILED, SKIPPED = "made", "cached", "failed", "skipped"
_COLORS = {MADE: "tab:blue", CACHED: "tab:gray", FAILED: "tab:red"}


@dataclass(frozen=True)
class Entry:
    """One step of a timeline."""

    name: str
    needs: Sequence[str]
    state: str
    """made, cached, failed or skipped"""
    started: float | None = None
    """Unix time in seconds; that of the earlier run of this workflow if it was cached, None if unknown"""
    seconds: float = 0.0
    run: str = ""
    """ID of the step's MLflow run"""
    reason: str = ""
    """Why it failed"""


def timeline_of(graph: Mapping[str, Node], result: GraphResult[Outcome], before: Sequence[Entry] = ()) -> list[Entry]:
    """Return the timeline of a run; cached steps keep the times that an earlier timeline has."""
    known = {entry.name: entry for entry in before}
    entries = []
    for name, node in graph.items():
        started, ended = result.times.get(name, (None, 0.0))
        seconds = ended - started if started is not None else 0.0
        if outcome := result.outcomes.get(name):
            state = CACHED if outcome.reused else MADE
            earlier = known.get(name)
            if state == CACHED and earlier and earlier.run == outcome.mlflow_run:
                started, seconds = earlier.started, earlier.seconds
            elif state == CACHED:
                started, seconds = None, 0.0
            entries.append(Entry(name, node.needs, state, started, seconds, outcome.mlflow_run))
        elif error := result.failed.get(name):
            reason = " ".join(str(error).split())
            entries.append(Entry(name, node.needs, FAILED, started, seconds, reason=reason))
        else:
            entries.append(Entry(name, node.needs, SKIPPED))
    return entries


def read_timeline(folder: str) -> list[Entry]:
    """Return the timeline in the folder of a workflow; empty if none was written."""
    uri = storage.join(folder, FILE)
    return [Entry(**row) for row in json.loads(storage.read_bytes(uri))] if storage.exists(uri) else []


def log_graph(graph: Mapping[str, Node], tracker: Tracker, notes: Mapping[str, str]) -> None:
    """Log the graph as a mermaid flowchart, with a note per step."""
    tracker.log_text(f"```mermaid\n{mermaid(graph, notes)}\n```\n", "workflow.md")


def log_timeline(timeline: Sequence[Entry], graph: Mapping[str, Node], folder: str, tracker: Tracker) -> None:
    """Write the timeline to the folder of the workflow, and show it on the page of its MLflow run."""
    uri = storage.join(folder, FILE)
    storage.write_bytes(uri, json.dumps([asdict(entry) for entry in timeline], indent=1).encode())
    log_graph(graph, tracker, {entry.name: _note(entry) for entry in timeline})
    tracker.log_figure("workflow", timeline_figure(timeline))
    rows = ["| step | needs | | seconds |", "|---|---|---|---|"]
    for entry in timeline:
        page = tracker.page_of(entry.run)
        step = f"[{entry.name}]({page})" if page else entry.name
        seconds = f"{entry.seconds:.0f}" if entry.started is not None else ""
        rows.append(f"| {step} | {', '.join(entry.needs)} | {entry.state} | {seconds} |")
    tracker.set_description("\n".join(rows))


def _note(entry: Entry) -> str:
    return f"{entry.state}, {entry.seconds:.0f} s" if entry.started is not None else entry.state


def timeline_figure(timeline: Sequence[Entry]) -> "Figure":
    """Plot each step as a bar from its start to its end."""
    figure = new_figure(figsize=(9, 1 + 0.35 * len(timeline)), layout="constrained")
    axes = figure.subplots()
    origin = min((entry.started for entry in timeline if entry.started is not None), default=0.0)
    for place, entry in enumerate(timeline):
        left = 0.0 if entry.started is None else entry.started - origin
        axes.barh(place, entry.seconds, left=left, color=_COLORS.get(entry.state))
        axes.text(left + entry.seconds, place, f" {_note(entry)}", va="center", fontsize="small")
    axes.set_yticks(range(len(timeline)), [entry.name for entry in timeline])
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set(xlabel="seconds since the first start", xlim=(0, None))
    return figure
