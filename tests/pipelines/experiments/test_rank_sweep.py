"""The rank sweep from labeled images to figures, on Ray, and its checks before it starts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient

from asymflow.patches import patchify
from asymflow.srgb import SrgbSpace
from asymflow.subspace import pca_basis, project
from pipelines.core import storage
from pipelines.core.artifacts import load_artifact
from pipelines.core.config import ConfigError, validate
from pipelines.core.step import run_step
from pipelines.core.tracking import tracking_uri
from pipelines.data.basis import step as basis
from pipelines.data.basis.step import load_subspace
from pipelines.data.datasets import read_images
from pipelines.evaluate.class_subject import read_class_model
from pipelines.evaluate.step import check as check_evaluation
from pipelines.evaluate.step import pin_registered
from pipelines.experiments.rank_sweep import (
    RankSweepSettings,
    check,
    evaluation_of,
    run_rank_sweep,
    training_of,
    variants_of,
)
from pipelines.sample.parameters import SamplingParameters
from pipelines.train.pretrain.model import load_pretrained

SQUEEZE = Path(__file__).parents[3] / "models/toy_klein/perceptual_squeeze.safetensors"
NETWORK = {
    "size": "B", "width": 32, "depth": 2, "heads": 2, "bottleneck": 24, "context_from": 1, "context_tokens": 2
}  # fmt: skip


@pytest.fixture(scope="module")
def family(tiny_workflow, tmp_path_factory):
    """Return (settings of a sweep, basis artifact), on the tiny workflow's images."""
    curated = tiny_workflow[2]["curate"].artifact.uri
    run = {"storage": str(tmp_path_factory.mktemp("ranks") / "runs")}
    tree = {
        "run": run, "curated": curated, "space": "srgb", "layout": "channel_last", "pca_rank": 768,
        "patches_per_image": "all",
    }  # fmt: skip
    made = run_step(basis.STEP, validate(basis.STEP.settings, tree)).artifact
    settings = {
        "run": run,
        "ranks": [0, 8],
        "random_ranks": [],
        "seeds": [3],
        "curve": {"ranks": [8], "steps": [2]},
        "floors": {"ranks": [8], "floors": [0.0], "changes": {"sampling.steps": 3}},
        "guidance": {8: [2.0, 0.1, 0.9]},
        "pretrain": {
            "curated": curated,
            "basis": made.uri,
            "classes": 4,
            "network": NETWORK,
            "optim": {"lr": 1e-3, "batch": 8, "steps": 4, "warmup_steps": 1},
            "ema": {"decay": 0.5},
            "checkpoints": {"every": 2, "keep_every": 2},
            "validation": None,
            "resources": {"zero_stage": 0},
        },
        "evaluate": {
            "suite": "classes",
            "curated": curated,
            "prompts": {"count": 8},
            "sampling": {"steps": 2, "guidance": 1.0},
            "scorers": {"squeeze": {"model": str(SQUEEZE)}},
            "bootstrap": {"set_resamples": 0},
            "shown": 2,
            "resources": {"batch": 8},
        },
    }
    return validate(RankSweepSettings, settings), made


@pytest.fixture(scope="module")
def swept(family):
    return run_rank_sweep(family[0])


pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_basis_of_srgb_is_that_of_the_pixels_themselves(family, tiny_workflow):
    found = load_subspace(family[1], "pca")
    assert found.space == SrgbSpace()
    assert found.layout == "channel_last"
    assert found.rank == 768
    files = tiny_workflow[2]["curate"].artifact.files("train", ".parquet")
    images = torch.cat([rows.images for file in files for rows in read_images(file)]).double()
    patches = patchify(images, 16, "channel_last").flatten(0, 1)
    expected = pca_basis(patches.T @ patches, 8)
    torch.testing.assert_close(project(patches, found.A[:, :8]), project(patches, expected), atol=1e-3, rtol=1e-3)
    first = found.A[:, 0]
    channel_first = load_subspace(family[1], "pca_channel_first").A[:, 0]
    torch.testing.assert_close(channel_first.view(3, 16, 16), first.view(16, 16, 3).permute(2, 0, 1))


def test_variants_are_trained_evaluated_and_plotted(family, swept):
    folder, run_id, rows = swept
    settings = family[0]
    assert [(r["rank"], r["figure"], r["step"], r["floor"]) for r in rows] == [
        (0, "rank", 4, None), (8, "rank", 4, None), (8, "curve", 2, None), (8, "floor", 4, 0.0)
    ]  # fmt: skip
    assert all(set(r["metrics"]) >= {"frechet", "sliced_wasserstein", "spectrum"} for r in rows)
    assert all(r["metrics"]["frechet"] > 0 and r["seed"] == 3 for r in rows)
    kept = {file.removeprefix(f"{folder}/") for file in storage.list_files(folder)}
    assert {"rows.json", "tables.md", "claims.json", "ranks.png", "convergence.png"} <= kept
    client = MlflowClient(tracking_uri(settings.run))
    pictures = {file.path for file in client.list_artifacts(run_id, "pictures")}
    assert {"pictures/ranks.png", "pictures/convergence.png"} <= pictures
    claims = {claim["claim"] for claim in json.loads(storage.read_bytes(storage.join(folder, "claims.json")))}
    assert "r = 8 beats r = 0" in claims
    assert "r = 8 is ahead of r = 0 at step 2" not in claims

    trained = load_artifact(rows[1]["pretrained"], "pretrain")
    assert trained.manifest["config"]["subspace"]["rank"] == 8
    assert trained.manifest["config"]["seed"] == 3
    evaluated = load_artifact(rows[1]["evaluated"], "evaluate").manifest["config"]["sampling"]
    assert (evaluated["guidance"], evaluated["guidance_interval"]) == (2.0, [0.1, 0.9])


def test_a_finished_sweep_is_cached(family, swept):
    again = run_rank_sweep(family[0])
    assert again[0] == swept[0]
    assert again[2] == swept[2]


def test_the_model_is_the_moving_average_at_the_end_or_at_a_checkpoint(swept):
    trained = load_artifact(swept[2][1]["pretrained"], "pretrain")
    end, before = load_pretrained(trained), load_pretrained(trained, 2)
    assert not torch.equal(end.network.output.linear.weight, before.network.output.linear.weight)
    assert read_class_model(trained, 4).identity("trained") == read_class_model(trained, None).identity("trained")
    assert read_class_model(trained, 2).identity("trained") != read_class_model(trained, None).identity("trained")
    with pytest.raises(ConfigError, match=r"pretrained_step=3: no such checkpoint; there are \[2, 4\]"):
        read_class_model(trained, 3)


def test_images_are_those_of_their_class_and_seed_in_any_batch(swept):
    subject = read_class_model(load_artifact(swept[2][1]["pretrained"], "pretrain"), None)
    sample = subject.sampler("trained", "cpu")
    changes = {"interval": (0.0, 0.9), "orthogonal": False, "clamp": False, "solver": "heun"}
    parameters = SamplingParameters(32, 32, 3, 2.0, 1.0, **changes)
    together = sample(["0", "3", "1"], [5, 6, 7], parameters)
    assert together.shape == (3, 3, 32, 32)
    assert together.abs().max() <= 1
    for i, (label, seed) in enumerate((("0", 5), ("3", 6), ("1", 7))):
        torch.testing.assert_close(sample([label], [seed], parameters)[0], together[i], atol=1e-5, rtol=0)
    assert not torch.equal(sample(["2"], [5], parameters)[0], together[0])
    floors = [sample(["0"], [5], replace(parameters, sigma_floor=floor)) for floor in (0.0, 0.9)]
    assert not torch.equal(*floors)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "fid"}, "metric='fid': must be one of frechet, sliced_wasserstein"),
        ({"ranks": [0, 900]}, "pretrain.subspace.rank=900: a patch has 768 values"),
        ({"pretrain": {"basis": ""}}, "pretrain.basis: missing"),
        ({"pretrain": {"curated": "nowhere"}}, "pretrain.curated: .*no finished curate artifact"),
        ({"curve": {"ranks": [4]}}, r"curve.ranks=\[4\]: 4 is not among `ranks`"),
        ({"evaluate": {"suite": "demo"}}, "is class-conditional, but demo has prompts"),
    ],
)
def test_bad_settings_are_refused_before_training(family, changes, message):
    tree = json.loads(family[0].model_dump_json())
    for name, value in changes.items():
        tree[name] = {**tree[name], **value} if isinstance(value, dict) else value
    tree |= {"floors": {"ranks": []}} if "ranks" in changes else {}
    tree |= {"curve": {"ranks": []}} if "ranks" in changes else {}
    with pytest.raises(ConfigError, match=message):
        check(validate(RankSweepSettings, tree))


def test_members_differ_in_their_subspace_alone(family):
    settings = family[0].model_copy(update={"random_ranks": [8]})
    made = {variant.name: training_of(settings, variant, 5) for variant in variants_of(settings)}
    assert list(made) == ["r=0", "r=8", "r=8 random"]
    assert {(s.subspace.rank, s.subspace.kind, s.subspace.seed) for s in made.values()} == {
        (0, "pca", 0), (8, "pca", 0), (8, "random", 5)
    }  # fmt: skip
    alike = {s.model_copy(update={"subspace": None}).model_dump_json() for s in made.values()}
    assert len(alike) == 1


def test_a_suite_of_classes_asks_for_a_model_of_classes(family):
    settings = evaluation_of(family[0], variants_of(family[0])[0], "x", None, {})
    with pytest.raises(ConfigError, match="pretrained: missing; classes is for class-conditional models"):
        check_evaluation(settings.model_copy(update={"pretrained": ""}))
    with pytest.raises(ConfigError, match="`pretrained` allows only trained"):
        check_evaluation(settings.model_copy(update={"models": ["lifted", "trained"]}))
    assert pin_registered(settings, latest=False) == settings
