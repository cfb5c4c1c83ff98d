"""Sweeps: many evaluations over a grid of settings, or in a search for the best guidance.

Every point is an ordinary evaluation with its own artifact and run: a sweep that is restarted, extended or repeated
reuses the cached points, also of other sweeps. The points of a grid, and those that a search starts with, are
evaluated at the same time, as far as the cluster has the resources that they declare.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from pipelines.core import storage
from pipelines.core.config import ConfigError, set_at, validate
from pipelines.core.step import Outcome, find_inputs
from pipelines.core.text_table import format_table
from pipelines.evaluate.config import EvaluateSettings
from pipelines.evaluate.step import STEP, measures_of, models_of, pin_registered
from pipelines.experiments.config import Search, SweepSettings
from pipelines.experiments.step_graph import run_independent
from pipelines.viz.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCALE_UNITS, INTERVAL_UNITS = 10, 50
"""Units of the guidance search, 0.1 of scale and 0.02 of noise level, as integers (App. B.1)"""
_LABEL = 16
GUIDANCE, INTERVAL = "sampling.guidance", "sampling.guidance_interval"


@dataclass(frozen=True)
class Point:
    """An evaluated point of a sweep."""

    changes: Mapping[str, Any]
    """{dotted.key: value}"""
    outcome: Outcome
    value: float
    cost: float
    """The value, or its negative where higher is better"""


def point_settings(settings: SweepSettings, changes: Mapping[str, Any]) -> EvaluateSettings:
    """Return the settings of a point. Raises ConfigError."""
    tree = json.loads(json.dumps({**settings.evaluate, "run": settings.run.model_dump()}))
    for key, value in changes.items():
        set_at(tree, key, value)
    found = validate(EvaluateSettings, tree, "evaluate")
    names = [f"{model}/{name}" for name in _directions(found) for model in models_of(found)]
    if settings.metric not in names:
        raise ConfigError(f"metric={settings.metric!r}: must be one of {', '.join(names)}")
    return found


def _directions(settings: EvaluateSettings) -> dict[str, str]:
    """Return {metric: "low" or "high"} for metrics with a better direction."""
    return {name: measure.better for measure in measures_of(settings) if measure.better for name in measure.names}


def grid_of(settings: SweepSettings) -> list[dict[str, Any]]:
    """Return the changes of every point of the grid."""
    return [dict(zip(settings.grid, values, strict=True)) for values in product(*settings.grid.values())]


def check(settings: SweepSettings) -> None:
    """Check every point of a grid, or a search's first ones, before any is evaluated. Raises ConfigError."""
    firsts = grid_of(settings) if settings.search is None else [_changes(c) for c in _corners(settings.search)]
    for changes in firsts:
        try:
            found = point_settings(settings, changes)
            STEP.check(found)
            STEP.check_inputs(found, find_inputs(STEP, found))
        except ConfigError as error:
            raise ConfigError(f"evaluate.{str(error).removeprefix('evaluate.')} (at {changes})") from None


def run_sweep(settings: SweepSettings) -> tuple[str, list[Point], Point]:
    """Run the sweep. Returns the parent run's ID, all points in evaluation order, and the best.

    Raises as a step does.
    """
    from pipelines.core.preflight import check_can_build, check_destinations
    from pipelines.core.tracking import open_artifact_run

    check_destinations(settings.run)
    check(settings)
    check_can_build(settings.run)
    identity = hashlib.sha256(settings.model_dump_json(exclude={"run"}).encode()).hexdigest()[:16]
    folder = storage.join(storage.absolute(settings.run.storage), "sweeps", identity)
    points: dict[str, Point] = {}
    name = f"sweep {settings.metric} {identity[:6]}"
    with open_artifact_run(folder, "sweep", settings.run, name) as tracker:
        tracker.log_params(settings.model_dump(mode="json"))

        def evaluate(candidates: Sequence[Mapping[str, Any]]) -> None:
            new = {_key(changes): changes for changes in candidates if _key(changes) not in points}
            evaluations = {key: pin_registered(point_settings(settings, new[key]), latest=False) for key in new}
            for key, outcome in run_independent(STEP, evaluations, tracker.run_id).items():
                value = outcome.artifact.manifest["metrics"][settings.metric]
                low = _directions(evaluations[key])[settings.metric.split("/")[1]] == "low"
                points[key] = Point(new[key], outcome, value, value if low else -value)
                tracker.log_metrics({f"sweep/{settings.metric}": value}, step=len(points))

        def objective(changes: Mapping[str, Any]) -> float:
            evaluate([changes])
            return points[_key(changes)].cost

        if settings.search is None:
            evaluate(grid_of(settings))
            best = min(grid_of(settings), key=objective)
        else:
            evaluate([_changes(place) for place in coarse_grid(settings.search)])
            best = _changes(coarse_to_fine(lambda c: objective(_changes(c)), settings.search))
        found = list(points.values())
        rows = rows_of(settings, found)
        storage.write_bytes(storage.join(folder, "points.json"), json.dumps(rows, indent=1).encode())
        tracker.log_table("points", _columns(rows))
        tracker.log_figure("sweep", sweep_figure(settings.metric, found))
        chosen = points[_key(best)]
        for key, value in chosen.changes.items():
            tracker.set_tag(f"best {key}", str(value))
        return tracker.run_id, found, chosen


def _key(changes: Mapping[str, Any]) -> str:
    return json.dumps(changes, sort_keys=True)


Coordinates = tuple[int, int, int]
"""Scale in tenths, and both ends of the interval in fiftieths"""


def coarse_to_fine(objective: Callable[[Coordinates], float], search: Search) -> Coordinates:
    """Return the local minimum of the objective that a descent on a refined grid finds; see `Search`."""
    bounds, stride = _bounds(search), search.coarse
    best = min(coarse_grid(search), key=objective)
    while stride:
        better = min([best, *_neighbours(best, stride, bounds)], key=objective)
        if objective(better) < objective(best):
            best = better
        else:
            stride //= 2
    return best


def coarse_grid(search: Search) -> list[Coordinates]:
    """Return the points that a search starts with, which do not depend on each other."""
    axes = [sorted({*range(low, high + 1, search.coarse), high}) for low, high in _bounds(search)]
    return [(scale, low, high) for scale, low, high in product(*axes) if _sound((scale, low, high))]


def _neighbours(place: Coordinates, stride: int, bounds: Sequence[tuple[int, int]]) -> Iterator[Coordinates]:
    for axis, step in product(range(3), (-stride, stride)):
        moved = tuple(value + step * (i == axis) for i, value in enumerate(place))
        if bounds[axis][0] <= moved[axis] <= bounds[axis][1] and _sound(moved):
            yield moved  # type: ignore[misc]  # three again


def _bounds(search: Search) -> list[tuple[int, int]]:
    units = (SCALE_UNITS, INTERVAL_UNITS, INTERVAL_UNITS)
    spans = (search.scale, search.low, search.high)
    return [(round(low * unit), round(high * unit)) for (low, high), unit in zip(spans, units, strict=True)]


def _corners(search: Search) -> list[Coordinates]:
    lows, highs = zip(*_bounds(search), strict=True)
    return [corner for corner in (lows, highs) if _sound(corner)]


def _sound(place: Sequence[int]) -> bool:
    return place[1] <= place[2]


def _changes(place: Coordinates) -> dict[str, Any]:
    scale, low, high = place
    return {GUIDANCE: scale / SCALE_UNITS, INTERVAL: [low / INTERVAL_UNITS, high / INTERVAL_UNITS]}


def rows_of(settings: SweepSettings, points: Sequence[Point]) -> list[dict[str, Any]]:
    """Return the points as rows, the best first."""
    ranked = sorted(points, key=lambda point: point.cost)
    places = [{"artifact": point.outcome.artifact.uri, "run": point.outcome.mlflow_run} for point in ranked]
    return [{**p.changes, settings.metric: p.value, **place} for p, place in zip(ranked, places, strict=True)]


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [str(row[name]) if isinstance(row[name], list) else row[name] for row in rows] for name in rows[0]}


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table for a terminal."""
    shown = [name for name in rows[0] if name != "run"]
    lines = [shown]
    lines += [[f"{row[n]:.5g}" if isinstance(row[n], float) else str(row[n]) for n in shown] for row in rows]
    return format_table(lines)


def sweep_figure(metric: str, points: Sequence[Point]) -> "Figure":
    """Plot the metric by each varied setting; values other than numbers are categories in order."""
    keys = list(points[0].changes)
    figure = new_figure(figsize=(4 * len(keys), 3.2), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(keys), sharey=True, squeeze=False)[0], keys, strict=True):
        values = [point.changes[key] for point in points]
        numeric = all(isinstance(value, int | float) for value in values)
        labels = [str(value)[-_LABEL:] for value in values]  # the end of a path identifies it
        axes.plot(values if numeric else labels, [point.value for point in points], "o")
        axes.set(xlabel=key)
        if not numeric:
            axes.tick_params(axis="x", rotation=45)
    figure.axes[0].set_ylabel(metric)
    return figure
