"""The benchmark suites from prompts to metrics: tiny models of the real classes, on Ray, on images made elsewhere."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipelines.core.config import ConfigError, validate
from pipelines.core.step import run_step
from pipelines.evaluate.config import EvaluateSettings
from pipelines.evaluate.step import STEP

COUNT = 4


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread: 2048 x 2048 matrices dominate, and more threads contend for two cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def settings(root, scorers, tmp_path):
    def make(suite, **changes):
        tree = {
            "run": {"storage": str(tmp_path / "runs")}, "suite": suite, "pictures": str(root / "made"),
            "prompts": {"count": COUNT}, "scorers": scorers, "bootstrap": {"resamples": 50, "set_resamples": 0},
            "shown": 1,
        }  # fmt: skip
        return validate(EvaluateSettings, tree | changes)

    return make


def evaluated(settings):
    artifact = run_step(STEP, settings).artifact
    table = json.loads(Path(artifact.uri, "table.json").read_text())
    rows = pq.read_table(Path(artifact.uri, "scores.parquet")).to_pylist()
    return {"/".join(filter(None, (row["metric"], row["category"]))): row for row in table}, rows, artifact


@pytest.mark.ray
@pytest.mark.slow
def test_coco_by_six_scorers(settings, root, local_ray):
    # One scorer runs in another environment: a second Python with the same packages.
    found = settings(
        "coco10k", pictures=str(root / "one_each"), reference={"source": str(root / "real")},
        prompts={"count": COUNT, "file": str(root / "captions.txt")},
    )  # fmt: skip
    clip = found.scorers.clip_score
    python = {"py_executable": sys.executable}
    clip = clip.model_copy(update={"resources": clip.resources.model_copy(update={"environment": python})})
    found = found.model_copy(update={"scorers": found.scorers.model_copy(update={"clip_score": clip})})
    table, rows, artifact = evaluated(found)
    assert list(table) == ["hpsv3", "hpsv2.1", "vqa_score", "clip_score", "fid", "pfid"]
    columns = {"hpsv3": "hps_v3", "hpsv2.1": "hps_v2", "vqa_score": "vqa_score", "clip_score": "clip_score"}
    for metric, scorer in columns.items():
        values = [row[f"{scorer}/score"] for row in rows]
        assert len(set(values)) == COUNT
        assert table[metric]["value"] == pytest.approx(np.mean(values))
        assert table[metric]["low"] < table[metric]["value"] < table[metric]["high"]
    assert table["fid"]["value"] > 0
    assert table["pfid"]["value"] > 0
    assert table["fid"]["low"] is None
    protocols = json.loads(Path(artifact.uri, "protocols.json").read_text())["numbers"]
    assert protocols[table["fid"]["fingerprint"]]["scorer"]["resize"] == "bicubic"
    assert protocols[table["pfid"]["fingerprint"]]["scorer"]["resize"] == "centre_crop"
    assert len(protocols[table["fid"]["fingerprint"]]["reference"]) == 12
    assert protocols[table["hpsv2.1"]["fingerprint"]]["scorer"]["activation"] == "quickgelu"
    assert all(protocol["pictures"] == COUNT for protocol in protocols.values())

    # A subset: its scores are cached.
    before = {p: p.stat().st_mtime_ns for p in Path(found.run.storage, "scores").rglob("*.parquet")}
    fewer = found.model_copy(update={"leave_out": ["hps_v3", "inception", "inception_crop"]})
    assert list(evaluated(fewer)[0]) == ["hpsv2.1", "vqa_score", "clip_score"]
    assert {p: p.stat().st_mtime_ns for p in Path(found.run.storage, "scores").rglob("*.parquet")} == before


@pytest.mark.ray
@pytest.mark.slow
def test_geneval_and_dpg(settings, root, local_ray):
    from asymflow.metrics.dpg import score_prompt

    table, rows, _ = evaluated(settings("geneval", prompts={"count": COUNT, "file": str(root / "metadata.jsonl")}))
    assert list(table) == ["geneval-hf", "geneval-hf/colors", "geneval-hf/counting"]
    right = [row["geneval/correct"] for row in rows]
    assert table["geneval-hf/counting"]["value"] == np.mean(right[4:])
    assert table["geneval-hf/counting"]["prompts"] == 3
    assert table["geneval-hf"]["value"] == pytest.approx(np.mean([np.mean(right[:4]), np.mean(right[4:])]))
    assert all(isinstance(json.loads(row["geneval/reasons"]), list) for row in rows)

    table, rows, _ = evaluated(settings("dpg", prompts={"count": COUNT, "file": str(root / "dpg.csv")}))
    answers = [{int(q): yes for q, yes in json.loads(row["dpg/answers"]).items()} for row in rows]
    scores = [score_prompt({1: [0], 2: [1]}, answers[i : i + 4]) for i in range(0, 4 * COUNT, 4)]
    assert {yes for answer in answers for yes in answer.values()} == {True, False}
    assert table["dpg"]["value"] == pytest.approx(100 * np.mean(scores))
    assert list(table) == ["dpg", "dpg/entity", "dpg_official/entity"]


@pytest.mark.ray
@pytest.mark.slow
def test_geneval2_by_a_judge(settings, root, local_ray):
    prompts = {"count": COUNT, "file": str(root / "geneval2.jsonl")}
    table, rows, artifact = evaluated(settings("geneval2", pictures=str(root / "one_each"), prompts=prompts))
    answers = [json.loads(row["geneval2/probabilities"]) for row in rows]
    assert table["soft_tifa_am"]["value"] == pytest.approx(100 * np.mean(answers))
    assert table["soft_tifa_gm"]["value"] == pytest.approx(100 * np.mean(np.sqrt(np.prod(answers, axis=1))))
    assert table["soft_tifa_am/count"]["value"] == pytest.approx(100 * np.mean([own[0] for own in answers]))
    by_atoms = table["soft_tifa_gm/2 atoms"]["value"] + table["soft_tifa_gm/3 atoms"]["value"]
    assert by_atoms / 2 == pytest.approx(table["soft_tifa_gm"]["value"])
    assert table["tifa"]["value"] <= 100
    assert len({round(value, 9) for own in answers for value in own}) == 2 * COUNT
    protocols = json.loads(Path(artifact.uri, "protocols.json").read_text())["numbers"]
    protocol = protocols[table["soft_tifa_gm"]["fingerprint"]]["scorer"]
    assert protocol["tokens"].keys() >= {"Yes", "two", " 2"}
    assert protocol["model"].startswith("local:")
    with pytest.raises(ConfigError, match="has 4 prompts, geneval2 has 800"):
        run_step(STEP, settings("geneval2", pictures=str(root / "one_each"), prompts={"file": prompts["file"]}))


@pytest.mark.ray
@pytest.mark.slow
def test_preference(settings, root, local_ray):
    prompts = {"count": COUNT, "file": str(root / "captions.txt")}
    table, rows, _ = evaluated(settings("preference", pictures=str(root / "one_each"), prompts=prompts))
    for metric in ("pick_score", "image_reward", "aesthetic"):
        values = [row[f"{metric}/score"] for row in rows]
        assert len(set(values)) == COUNT
        assert table[metric]["value"] == pytest.approx(np.mean(values))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("suite", "file", "metric"),
    [("longtext_en", "long_text.jsonl", "text_score"), ("unigenbench", "unigenbench.csv", "unigenbench")],
)
def test_suites_that_read_replies(suite, file, metric, settings, root, local_ray):
    table, rows, _ = evaluated(settings(suite, prompts={"count": COUNT, "file": str(root / file)}))
    scorer = "long_text" if metric == "text_score" else "unigenbench"
    assert len({row[f"{scorer}/reply"] for row in rows}) > 1
    assert 0 <= table[metric]["value"] <= 100
    assert table[metric]["pictures"] == 4 * COUNT
    if suite == "unigenbench":  # the tiny judge writes no lists
        assert table["unreadable_replies"]["value"] == 100
        assert table["unreadable_replies"]["better"] == "low"


@pytest.mark.ray
@pytest.mark.slow
def test_imagenet_by_adms_protocol(settings, root, local_ray, tmp_path):
    """With statistics and images in a file of ADM's format."""
    images = np.random.default_rng(5).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    generator = np.random.default_rng(6)
    moments = {}
    for name, width in (("", 2048), ("_s", 2023)):
        sample = generator.normal(0, 1, (40, width)).astype(np.float32)
        moments |= {f"mu{name}": sample.mean(0), f"sigma{name}": np.cov(sample.T)}
    np.savez(tmp_path / "reference.npz", arr_0=images, **moments)
    reference = {"source": str(tmp_path / "reference.npz")}
    part = settings("imagenet50k", pictures=str(root / "small"), images_per_prompt=50, reference=reference,
                    prompts={"count": 20})  # fmt: skip
    with pytest.raises(ConfigError, match="there are 1000 images, the suite needs 50000"):
        run_step(STEP, part.model_copy(update={"prompts": part.prompts.model_copy(update={"count": None})}))
    fewer = part.model_copy(update={"images_per_prompt": 1, "pictures": str(root / "made")})
    fewer = fewer.model_copy(update={"prompts": fewer.prompts.model_copy(update={"count": 16})})
    table, rows, _ = evaluated(fewer)
    assert list(table) == ["fid", "sfid", "inception_score", "precision", "recall"]
    assert table["fid"]["value"] > 0
    assert table["sfid"]["value"] > 0
    assert 1 <= table["inception_score"]["value"] <= 10
    assert len(rows) == 16
    assert rows[3]["prompt_id"] == "003"


def test_held_out_images_are_the_demos_reference_alone(settings, root, held_out, tmp_path):
    from types import SimpleNamespace

    from pipelines.core.artifacts import load_artifact
    from pipelines.evaluate.step import find_real

    given = {"source": str(root / "real")}
    prompts = {"file": str(root / "captions.txt"), "count": COUNT}
    found = settings("coco10k", curated=held_out, reference=given, prompts=prompts)
    context = SimpleNamespace(inputs={"curated": load_artifact(held_out, "curate")})
    _, real = find_real(found, context, COUNT, str(tmp_path))
    assert sorted(real.files.values()) == sorted(str(p) for p in (root / "real").iterdir())
