"""The demo suite on the shipped toy: real Ray, files and MLflow database."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from mlflow.tracking import MlflowClient
from PIL import Image

from pipelines.core.config import ConfigError, validate
from pipelines.core.step import StepFailed, run_step
from pipelines.core.tracking import tracking_uri
from pipelines.evaluate.config import EvaluateSettings
from pipelines.evaluate.step import STEP, check_thresholds

ROOT = Path(__file__).parents[3]
MODELS = ("latent", "lifted", "trained")


def run(tree):
    return run_step(STEP, validate(EvaluateSettings, tree))


def made_in(storage, suffixes=(".png", ".parquet")):
    """Return {file: modification time} of all images and scores."""
    folders = [Path(storage) / "pictures", Path(storage) / "scores"]
    return {p: p.stat().st_mtime_ns for f in folders for p in f.rglob("*") if p.suffix in suffixes}


def results(outcome):
    """Return the results that must not depend on how they were computed."""
    folder = Path(outcome if isinstance(outcome, str) else outcome.artifact.uri)
    table = json.loads((folder / "table.json").read_text())
    rows = pq.read_table(folder / "scores.parquet").to_pylist()
    scores = [{k: v for k, v in row.items() if k != "picture"} for row in rows]
    return table, scores, (folder / "samples.png").read_bytes()


@pytest.mark.ray
@pytest.mark.slow
def test_the_demo_suite_from_images_to_mlflow(demo, local_ray):
    tree = demo(leave_out=[])
    outcome = run(tree)
    table, scores, _ = results(outcome)
    folder, storage = Path(outcome.artifact.uri), Path(tree["run"]["storage"])
    metrics = outcome.artifact.manifest["metrics"]
    assert metrics == {f"{row['model']}/{row['metric']}": row["value"] for row in table}
    assert {row["model"] for row in table} == set(MODELS)
    assert len(table) == 15
    assert all(row["low"] < row["value"] < row["high"] and row["pictures"] == 10 for row in table)
    protocols = json.loads((folder / "protocols.json").read_text())
    assert {row["fingerprint"] for row in table} == protocols["numbers"].keys()
    assert {protocols["pictures"][model]["model"] for model in MODELS} == set(MODELS)
    assert len(scores) == 30
    assert {row["index"] for row in scores} == set(range(10))
    assert len(made_in(storage, (".png",))) == 30 + 5  # three models' and the real ones
    client = MlflowClient(tracking_uri(validate(EvaluateSettings, tree).run))
    record = client.get_run(outcome.mlflow_run)
    assert record.data.metrics == pytest.approx({f"eval/demo/{name}": value for name, value in metrics.items()})
    assert record.info.run_name == f"evaluate demo {outcome.artifact.id[:6]}"
    scorers = {name.split(".")[1] for name in record.data.params if name.startswith("scorers.")}
    assert scorers == {"spectrum", "efficientnet"}
    assert record.data.params["suite"] == "demo"
    logged = {file.path for file in client.list_artifacts(outcome.mlflow_run)}
    assert {"pictures", "scores.parquet", "protocols.json", "table.json"} <= logged
    pictures = {Path(file.path).name for file in client.list_artifacts(outcome.mlflow_run, "pictures")}
    assert pictures == {"samples.png", *(f"{model}_spectrum.png" for model in MODELS)}
    with Image.open(folder / "samples.png") as image_grid:
        assert image_grid.width > 4 * 256
        assert image_grid.height > 2 * 256

    # More prompts, other intervals: cached images and scores are reused, and only missing ones are made.
    before = made_in(storage)
    more = run(demo(prompts={"count": 7}, bootstrap={"set_resamples": 0}))
    after = made_in(storage)
    assert {p: t for p, t in after.items() if p in before} == before
    assert len([p for p in after if p not in before and p.suffix == ".png"]) == 3 * 4 + 2  # two real ones
    assert more.artifact.id != outcome.artifact.id
    assert results(more)[0][0]["low"] is None
    again = run(tree)
    assert again.reused
    assert made_in(storage) == after


@pytest.mark.ray
@pytest.mark.slow
def test_results_do_not_depend_on_actors_or_batches(demo, local_ray, tmp_path):
    first = results(run(demo(run={"storage": str(tmp_path / "a")})))
    two = demo(run={"storage": str(tmp_path / "b")}, resources={"workers": 2, "batch": 4})
    two["scorers"] = {"spectrum": {"resources": {"workers": 2, "batch": 3}}}
    assert results(run(two)) == first  # to the last bit
    table, scores, _ = results(run(demo(run={"storage": str(tmp_path / "c")}, resources={"batch": 3})))
    # Products of other shapes round differently, which may change an 8-bit value by one.
    assert [row["value"] for row in table] == pytest.approx([row["value"] for row in first[0]], rel=1e-3)
    assert [row["spectrum/score"] for row in scores] == pytest.approx(
        [row["spectrum/score"] for row in first[1]], rel=1e-3
    )
    assert [row["fingerprint"] for row in table] == [row["fingerprint"] for row in first[0]]


def start(config):
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    command = [sys.executable, str(ROOT / "jobs/evaluate.py"), "demo", str(config)]
    log = open(config.with_suffix(".log"), "a")
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=log, text=True
    )


@pytest.mark.ray
@pytest.mark.slow
def test_resuming_after_a_kill_repeats_nothing(demo, local_ray, tmp_path):
    tree = demo(
        run={"storage": str(tmp_path / "killed")}, prompts={"count": 8}, resources={"workers": 2, "batch": 2},
        scorers={"spectrum": {"resources": {"workers": 2, "batch": 2}}},
    )  # fmt: skip
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree))
    whole = run(tree | {"run": {"storage": str(tmp_path / "whole")}})
    storage = tmp_path / "killed"
    known = {}
    for suffix in (".png", ".parquet"):  # once while sampling, once while scoring
        job = start(config)
        deadline = time.monotonic() + 120
        while len([p for p in made_in(storage) if p.suffix == suffix]) < 5:
            assert job.poll() is None, config.with_suffix(".log").read_text()[-3000:]
            assert time.monotonic() < deadline, config.with_suffix(".log").read_text()[-3000:]
            time.sleep(0.02)
        os.killpg(job.pid, signal.SIGKILL)
        job.communicate()
        time.sleep(1)  # Ray's actors notice that their driver is gone
        found = made_in(storage)
        assert {p: t for p, t in found.items() if p in known} == known
        known = found
    job = start(config)
    out = job.communicate(timeout=200)[0]
    assert job.returncode == 0, config.with_suffix(".log").read_text()[-3000:]
    final = made_in(storage)
    assert {p: t for p, t in final.items() if p in known} == known
    assert len(final) > len(known)
    assert len([p for p in final if p.suffix == ".png"]) == 3 * 16 + 8
    assert results(json.loads(out.splitlines()[-1])["artifact"]) == results(whole)


@pytest.mark.ray
def test_images_made_elsewhere(demo, local_ray, tmp_path):
    for i in range(10):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        (tmp_path / "found").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "found" / f"{i:03}.png")
    tree = demo(pictures=str(tmp_path / "found"), adapter="", base="")
    table, scores, _ = results(run(tree))
    assert {row["model"] for row in table} == {"trained"}
    assert [Path(row["prompt_id"]).name for row in scores[:4]] == ["00000", "00000", "00001", "00001"]
    (power,) = [row["value"] for row in table if row["metric"] == "high_frequency_power"]
    assert power > 2  # noise
    # Other images under the same names do not reuse the cached results of the first.
    (tmp_path / "found" / "004.png").write_bytes((tmp_path / "found" / "000.png").read_bytes())
    changed = results(run(tree))[1]
    assert changed[4]["spectrum/score"] == scores[0]["spectrum/score"] != scores[4]["spectrum/score"]
    assert [row["spectrum/score"] for row in changed[:4]] == [row["spectrum/score"] for row in scores[:4]]
    (tmp_path / "found" / "extra.png").write_bytes((tmp_path / "found" / "000.png").read_bytes())
    with pytest.raises(ConfigError, match="pictures=.*/found': there are 11 images, the suite needs 10"):
        run(tree)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suite": "cocoo"}, "suite='cocoo': input should be 'demo', 'classes', 'coco10k'"),
        ({"finetuned": "x"}, "finetuned: no finished finetune artifact|adapter and finetuned: only one"),
        ({"base": ""}, "base: missing"),
        ({"base": "nowhere"}, "base='nowhere': no such folder"),
        ({"adapter": "./nowhere"}, "no such folder|no adapter"),
        ({"curated": ""}, "curated: missing; demo uses its held-out captions"),
        ({"prompts": {"count": 1000}}, "prompts.count=1000: there are only"),
        ({"sampling": {"height": 102}}, "sampling.height=102: must be a multiple of 4"),
        ({"sampling": {"guidance_interval": [0.5, 0.1]}}, "sampling.guidance_interval"),
        ({"leave_out": ["fid"]}, "leave_out=.'fid'.: demo has the scorers spectrum"),
        ({"models": ["latent", "latent"]}, "models=.*twice"),
        ({"floors": {"trained/fid": 1}}, "floors.trained/fid: no such score; there are latent/sliced_wasserstein"),
        ({"pictures": "x", "adapter": "", "models": ["latent"]}, "`pictures` allows only trained"),
        ({"suite": "imagenet50k"}, "pretrained: missing; imagenet50k is for class-conditional models"),
        ({"suite": "dpg"}, "scorers.dpg.model: no model was named: needed is a yes/no visual question answering model"),
        ({"suite": "dpg", "leave_out": ["dpg"]}, "prompts.file: missing; dpg_bench.csv"),
    ],
)
def test_bad_settings_end_it_before_ray_starts(demo, monkeypatch, changes, message):
    monkeypatch.setattr("pipelines.core.step.start_ray", lambda run: pytest.fail("Ray was started"))
    with pytest.raises(ConfigError, match=message):
        run(demo(**changes))


def test_without_the_package_of_the_features(demo, monkeypatch):
    from asymflow.metrics import efficientnet_file

    monkeypatch.setattr(efficientnet_file, "find_spec", lambda name: None)
    message = r"scorers.efficientnet.model: .*pip install 'asymflow\[demo\]'; leave_out: \[efficientnet\] does without"
    with pytest.raises(ConfigError, match=message):
        STEP.check(validate(EvaluateSettings, demo(leave_out=[])))
    STEP.check(validate(EvaluateSettings, demo()))


def test_scores_outside_their_thresholds_fail_the_job(demo):
    from types import SimpleNamespace

    metrics = {"trained/spectrum": 0.3, "trained/high_frequency_power": 0.5}
    outcome = SimpleNamespace(artifact=SimpleNamespace(manifest={"metrics": metrics}))

    def settings(**limits):
        return validate(EvaluateSettings, demo(**limits))

    check_thresholds(
        settings(floors={"trained/high_frequency_power": 0.5}, ceilings={"trained/spectrum": 0.3}), outcome
    )
    with pytest.raises(StepFailed, match="power is 0.5, below its floor 0.6; .*spectrum is 0.3, above its ceiling 0.2"):
        limits = {"floors": {"trained/high_frequency_power": 0.6}, "ceilings": {"trained/spectrum": 0.2}}
        check_thresholds(settings(**limits), outcome)
    with pytest.raises(StepFailed, match="demo: trained/flat_ground: these prompts have no such score"):
        check_thresholds(settings(ceilings={"trained/flat_ground": 2.0}), outcome)
