"""Report of a rank sweep: the paper's Figures 5 and 6 and Table 1, and verdicts on its claims."""

import json
import statistics
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from scipy.stats import t as student

from pipelines.core import storage
from pipelines.viz.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipelines.core.tracking import Tracker

Row = dict[str, Any]
LEVEL = 0.95


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the width of its confidence interval over seeds, by Student's t.

    The half width is infinite for one value.
    """
    if len(values) < 2:
        return values[0], float("inf")
    factor = float(student.ppf((1 + LEVEL) / 2, len(values) - 1))
    return statistics.fmean(values), factor * statistics.stdev(values) / len(values) ** 0.5


def select_by_seed(rows: Sequence[Row], metric: str, **columns: Any) -> dict[int, float]:
    """Return {seed: value} of the rows that match all given `columns`."""
    return {
        row["seed"]: row["metrics"][metric]
        for row in rows
        if all(row[name] == value for name, value in columns.items())
    }


def difference(a: dict[int, float], b: dict[int, float]) -> tuple[float, float] | None:
    """Return the mean of a - b over common seeds, and half its interval. None without a common seed."""
    common = sorted(a.keys() & b.keys())
    return interval([a[seed] - b[seed] for seed in common]) if common else None


def verdict(found: tuple[float, float]) -> str:
    """Return the verdict on a difference that the paper claims to be below zero."""
    mean, half = found
    if mean + half < 0:
        return "held"
    return "the opposite" if mean - half > 0 else "undecided"


def claims(rows: Sequence[Row], metric: str, small: int = 8) -> list[dict[str, Any]]:
    """Compare the paper's claims on ranks with the rows; lower metrics are better.

    Args:
        rows: rows of the sweep.
        metric: metric to compare.
        small: the claimed best rank.

    Returns:
        For each claim the compared difference, which is below zero if the claim holds, its half interval and the
            verdict.
    """

    def end(rank: int, kind: str = "pca") -> dict[int, float]:
        return select_by_seed(rows, metric, figure="rank", rank=rank, kind=kind)

    largest = max((row["rank"] for row in rows), default=0)
    below_full = max((row["rank"] for row in rows if row["kind"] == "pca" and row["rank"] < largest), default=0)
    best, none, random = end(small), end(0), end(small, "random")
    floors = _loss_of_floor(rows, metric, small), _loss_of_floor(rows, metric, 0)
    compared = {
        f"r = {small} beats r = 0": difference(best, none),
        f"r = {small} beats a random subspace of rank {small}": difference(best, random),
        f"a random subspace of rank {small} is no better than r = 0": difference(none, random),
        f"r = {small} beats r = {below_full}": difference(best, end(below_full)),
        f"r = {small} beats r = {largest}": difference(best, end(largest)),
        f"r = {small} suffers less from no floor than r = 0": difference(*floors),
        f"REPA helps at r = {small}": difference(end(small, "repa"), best),
    }
    saved = {seed: share - 1 for seed, share in share_of_steps(rows, metric, small).items()}
    compared[f"r = {small} needs fewer steps than r = 0 for the same (share of the steps)"] = difference(
        saved, dict.fromkeys(saved, 0.0)
    )
    steps = sorted({row["step"] for row in rows if row["figure"] == "curve"})
    for step in steps:
        curve = [select_by_seed(rows, metric, figure="curve", rank=rank, step=step) for rank in (small, 0)]
        compared[f"r = {small} is ahead of r = 0 at step {step}"] = difference(*curve)
    return [
        {"claim": claim, "difference": found[0], "half_interval": found[1], "verdict": verdict(found)}
        for claim, found in compared.items()
        if found is not None
    ]


def share_of_steps(rows: Sequence[Row], metric: str, rank: int) -> dict[int, float]:
    """Return {seed: steps that the rank needs to reach the end of r = 0, divided by the steps of r = 0}.

    If the rank does not reach it, the share is the inverse of what r = 0 needs to reach the end of the rank. The metric
    is interpolated linearly between evaluated steps.
    """
    curves = {r: _curves(rows, metric, r) for r in (0, rank)}
    shares = {}
    for seed in sorted(curves[0].keys() & curves[rank].keys()):
        none, other = curves[0][seed], curves[rank][seed]
        if len(none) > 1 and len(other) > 1:
            behind = other[-1][1] > none[-1][1]
            slow, fast = (other, none) if behind else (none, other)
            share = _first_step(fast, slow[-1][1]) / slow[-1][0]
            shares[seed] = 1 / share if behind else share
    return shares


def _curves(rows: Sequence[Row], metric: str, rank: int) -> dict[int, list[tuple[int, float]]]:
    """Return {seed: [(step, value)] in order} of a rank's training."""
    found: dict[int, list[tuple[int, float]]] = {}
    for row in rows:
        if row["kind"] == "pca" and row["rank"] == rank and row["figure"] in ("curve", "rank"):
            found.setdefault(row["seed"], []).append((row["step"], row["metrics"][metric]))
    return {seed: sorted(points) for seed, points in found.items()}


def _first_step(curve: Sequence[tuple[int, float]], value: float) -> float:
    """Return where the curve first falls to a value that its end reaches; at least its first step."""
    before: tuple[int, float] | None = None
    for step, here in curve:
        if here <= value:
            return step if before is None else step - (step - before[0]) * (value - here) / (before[1] - here)
        before = step, here
    raise ValueError(f"the curve ends at {curve[-1][1]}, above {value}")


def _loss_of_floor(rows: Sequence[Row], metric: str, rank: int) -> dict[int, float]:
    """Return {seed: metric with the lowest floor minus that with the highest}."""
    floors = sorted({row["floor"] for row in rows if row["figure"] == "floor"})
    if not floors:
        return {}
    low, high = (select_by_seed(rows, metric, figure="floor", rank=rank, floor=f) for f in (floors[0], floors[-1]))
    return {seed: low[seed] - high[seed] for seed in low.keys() & high.keys()}


def rank_figure(rows: Sequence[Row], metric: str) -> "Figure":
    """Plot the paper's Figure 5: the metric by rank with every seed, random subspaces and REPA."""
    figure = new_figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    ranks = sorted({row["rank"] for row in rows})
    places = {rank: i for i, rank in enumerate(ranks)}
    for kind, marker, shift in (("pca", "o", 0.0), ("random", "s", 0.12), ("repa", "^", -0.12)):
        mine = [(r, select_by_seed(rows, metric, figure="rank", rank=r, kind=kind)) for r in ranks]
        mine = [(r, values) for r, values in mine if values]
        if not mine:
            continue
        x = [places[r] + shift for r, _ in mine]
        means, halves = zip(*(interval(list(values.values())) for _, values in mine), strict=True)
        finite = [half if half < float("inf") else 0.0 for half in halves]
        style = "-" if kind == "pca" else ""
        bars = axes.errorbar(x, means, yerr=finite, fmt=marker + style, capsize=3, label=kind)
        for place, (_, values) in zip(x, mine, strict=True):
            axes.plot([place] * len(values), list(values.values()), ".", alpha=0.4, color=bars[0].get_color())
    axes.set_yscale("log")  # full rank may be ten times as large as all others
    axes.set(xlabel="rank r", ylabel=metric, xticks=range(len(ranks)), xticklabels=[str(r) for r in ranks])
    axes.legend()
    return figure


def curve_figure(rows: Sequence[Row], metric: str) -> "Figure":
    """Plot the paper's Figure 6: the metric by step, its mean and interval over seeds."""
    figure = new_figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for rank in sorted({row["rank"] for row in rows if row["figure"] == "curve"}):
        mine = [r for r in rows if r["rank"] == rank and r["kind"] == "pca" and r["figure"] in ("curve", "rank")]
        steps = sorted({row["step"] for row in mine})
        points = [interval(list(select_by_seed(mine, metric, step=step).values())) for step in steps]
        halves = [half if half < float("inf") else 0.0 for _, half in points]
        axes.errorbar(steps, [mean for mean, _ in points], yerr=halves, marker="o", capsize=3, label=f"r = {rank}")
    axes.set(xlabel="step", ylabel=metric)
    axes.legend()
    return figure


def rank_table(rows: Sequence[Row]) -> list[list[str]]:
    """Return the table of variants: means and half intervals over seeds; the first line has the titles."""
    metrics = list(rows[0]["metrics"])
    lines = [["", "seeds", "loss", *metrics]]
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name and row["figure"] == "rank"]
        losses = [row["loss"] for row in mine if row["loss"] is not None]
        values = [_shown([row["metrics"][metric] for row in mine]) for metric in metrics]
        lines.append([name, str(len(mine)), _shown(losses) if losses else "", *values])
    return lines


def floor_table(rows: Sequence[Row]) -> list[list[str]]:
    """Return the paper's Table 1; only its titles if no floors were evaluated."""
    metrics = list(rows[0]["metrics"])
    lines = [["", "floor of sigma", *metrics]]
    mine = [row for row in rows if row["figure"] == "floor"]
    for name, floor in sorted({(row["name"], row["floor"]) for row in mine}, key=lambda pair: (pair[0], -pair[1])):
        same = [row for row in mine if row["name"] == name and row["floor"] == floor]
        lines.append([name, f"{floor:g}", *(_shown([row["metrics"][metric] for row in same]) for metric in metrics)])
    return lines


def by_loss(rows: Sequence[Row]) -> list[Row]:
    """Return rows of finished trainings with the flow matching loss of recovered velocities as their metric.

    That loss is comparable across ranks.
    """
    ends = (row for row in rows if row["figure"] == "rank" and row["loss"] is not None)
    return [{**row, "metrics": {"loss": row["loss"]}} for row in ends]


def claim_table(found: Sequence[dict[str, Any]], metric: str) -> list[list[str]]:
    """Return the table of claims; the first line has the titles."""
    lines = [[c["claim"], f"{c['difference']:.4g} ± {c['half_interval']:.2g}", c["verdict"]] for c in found]
    return [["claim", f"difference of {metric}", "verdict"], *lines]


def _shown(values: Sequence[float]) -> str:
    mean, half = interval(values)
    return f"{mean:.4g}" + (f" ± {half:.2g}" if half < float("inf") else "")


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown."""
    head, *rest = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rest))


def log_report(rows: Sequence[Row], metric: str, tracker: "Tracker", folder: str) -> None:
    """Log figures and tables to MLflow, and write them to the folder."""
    found = claims(rows, metric)
    tables = {"family": rank_table(rows), "floors": floor_table(rows)}
    tables["claims"] = claim_table(found, metric)
    tables["claims by the loss"] = claim_table(claims(by_loss(rows), "loss"), "the training loss")
    for name, lines in tables.items():
        head, *rest = lines
        if rest:
            columns = {title or "model": [line[i] for line in rest] for i, title in enumerate(head)}
            tracker.log_table(name, columns)
    text = "\n\n".join(f"## {name}\n\n{markdown(lines)}" for name, lines in tables.items())
    storage.write_bytes(storage.join(folder, "tables.md"), text.encode())
    storage.write_bytes(storage.join(folder, "claims.json"), json.dumps(found, indent=1).encode())
    figures = {"ranks": rank_figure(rows, metric)}
    if any(row["figure"] == "curve" for row in rows):
        figures["convergence"] = curve_figure(rows, metric)
    for name, figure in figures.items():
        tracker.log_figure(name, figure)
        save = partial(figure.savefig, dpi=120, format="png")
        storage.write_file(storage.join(folder, f"{name}.png"), save)
