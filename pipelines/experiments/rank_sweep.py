"""The rank sweep (Sec. 6.1): one training from scratch per rank and seed, equal but for the subspace.

Each is evaluated at its end, some also at other floors of sigma and at earlier checkpoints. Trainings and evaluations
are ordinary steps: a sweep that is restarted or extended reuses their artifacts.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.core import storage
from pipelines.core.config import ConfigError, set_at, validate
from pipelines.core.step import Outcome, find_inputs, run_step
from pipelines.evaluate.config import EvaluateSettings
from pipelines.evaluate.step import STEP as EVALUATE
from pipelines.evaluate.step import measures_of
from pipelines.experiments.config import RankSweepSettings
from pipelines.experiments.rank_report import Row, log_report
from pipelines.train.pretrain.config import PretrainSettings
from pipelines.train.pretrain.step import STEP as PRETRAIN

TRAINED = "trained"


@dataclass(frozen=True)
class Variant:
    """A rank and kind of subspace."""

    rank: int
    kind: str = "pca"
    """pca, random or repa"""
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return the name in tables."""
        return f"r={self.rank}" + ("" if self.kind == "pca" else f" {self.kind}")


def variants_of(settings: RankSweepSettings) -> list[Variant]:
    """Return the variants of a sweep."""
    found = [Variant(r, "pca", {"subspace.rank": r}) for r in settings.ranks]
    found += [Variant(r, "random", {"subspace.rank": r, "subspace.kind": "random"}) for r in settings.random_ranks]
    if settings.repa:
        repa = settings.repa.settings.model_dump()
        found += [Variant(r, "repa", {"subspace.rank": r, "repa": repa}) for r in settings.repa.ranks]
    return found


def training_of(settings: RankSweepSettings, variant: Variant, seed: int) -> PretrainSettings:
    """Return the training of a variant and seed. Raises ConfigError."""
    changes = {**variant.changes, "seed": seed}
    if variant.kind == "random":
        changes["subspace.seed"] = seed
    return validate(PretrainSettings, _changed(settings, settings.pretrain, changes), "pretrain")


def evaluation_of(
    settings: RankSweepSettings, variant: Variant, pretrained: str, step: int | None, changes: Mapping[str, Any]
) -> EvaluateSettings:
    """Return an evaluation of a trained variant. Raises ConfigError.

    Args:
        settings: settings of the sweep.
        variant: the variant.
        pretrained: URI of its artifact.
        step: checkpoint; None for the end.
        changes: {dotted.key: value} of the evaluation.
    """
    changes = {"pretrained": pretrained, "pretrained_step": step, **changes}
    guidance = settings.random_guidance if variant.kind == "random" else settings.guidance
    if variant.rank in guidance:
        scale, *interval = guidance[variant.rank]
        changes = {"sampling.guidance": scale, "sampling.guidance_interval": interval, **changes}
    return validate(EvaluateSettings, _changed(settings, settings.evaluate, changes), "evaluate")


def _changed(settings: RankSweepSettings, tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps({**tree, "run": settings.run.model_dump()}))
    for key, value in changes.items():
        set_at(changed, key, value)
    return changed


def check(settings: RankSweepSettings) -> None:
    """Check all trainings and the evaluation before the first one runs. Raises ConfigError."""
    for variant in variants_of(settings):
        found = training_of(settings, variant, settings.seeds[0])
        try:
            PRETRAIN.check(found)
            PRETRAIN.check_inputs(found, find_inputs(PRETRAIN, found))
        except ConfigError as error:
            raise ConfigError(f"pretrain.{error} (at {variant.name})") from None
    evaluation = evaluation_of(settings, variants_of(settings)[0], "given", None, {})
    EVALUATE.check(evaluation)
    names = [name for measure in measures_of(evaluation) for name in measure.names]
    if settings.metric not in names:
        raise ConfigError(f"metric={settings.metric!r}: must be one of {', '.join(names)}")


def points_of(settings: RankSweepSettings, variant: Variant) -> Iterator[tuple[str, int | None, dict[str, Any]]]:
    """Yield (figure it belongs to, checkpoint or None, changes) of a trained variant's evaluations."""
    yield "rank", None, {}
    if variant.kind == "pca" and variant.rank in settings.curve.ranks:
        for step in settings.curve.steps:
            yield "curve", step, {}
    if variant.kind == "pca" and variant.rank in settings.floors.ranks:
        for floor in settings.floors.floors:
            yield "floor", None, {**settings.floors.changes, "sampling.sigma_floor": floor}


def run_rank_sweep(settings: RankSweepSettings) -> tuple[str, str, list[Row]]:
    """Run the sweep. Returns the folder, the parent run's ID and the rows.

    Seeds are the outer loop: an interrupted sweep has comparable results.
    """
    from pipelines.core.preflight import check_can_build, check_destinations
    from pipelines.core.tracking import open_artifact_run

    check_destinations(settings.run)
    check(settings)
    check_can_build(settings.run)
    identity = hashlib.sha256(settings.model_dump_json(exclude={"run"}).encode()).hexdigest()[:16]
    folder = storage.join(storage.absolute(settings.run.storage), "rank_sweeps", identity)
    rows: list[Row] = []
    with open_artifact_run(folder, "rank_sweep", settings.run, f"rank sweep {identity[:6]}") as tracker:
        tracker.log_params(settings.model_dump(mode="json"))
        for seed in settings.seeds:
            for variant in variants_of(settings):
                trained = run_step(PRETRAIN, training_of(settings, variant, seed), tracker.run_id)
                uri = trained.artifact.uri
                for figure, step, changes in points_of(settings, variant):
                    evaluation = evaluation_of(settings, variant, uri, step, changes)
                    found = run_step(EVALUATE, evaluation, tracker.run_id)
                    rows.append(_row(variant, seed, figure, step, changes, trained, found))
                storage.write_bytes(storage.join(folder, "rows.json"), json.dumps(rows, indent=1).encode())
                tracker.log_metrics({f"rank_sweep/{settings.metric}": rows[-1]["metrics"][settings.metric]}, len(rows))
        log_report(rows, settings.metric, tracker, folder)
    return folder, tracker.run_id, rows


def _row(
    variant: Variant,
    seed: int,
    figure: str,
    step: int | None,
    changes: Mapping[str, Any],
    trained: Outcome,
    found: Outcome,
) -> Row:
    numbers = found.artifact.manifest["metrics"]
    return {
        "name": variant.name,
        "rank": variant.rank,
        "kind": variant.kind,
        "seed": seed,
        "figure": figure,
        "step": step or trained.artifact.manifest["config"]["optim"]["steps"],
        "floor": changes.get("sampling.sigma_floor"),
        "loss": trained.artifact.manifest["metrics"].get("flow_matching"),
        "metrics": {name.removeprefix(f"{TRAINED}/"): value for name, value in numbers.items()},
        "pretrained": trained.artifact.uri,
        "evaluated": found.artifact.uri,
    }
