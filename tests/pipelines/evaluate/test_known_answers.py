"""The expected values of the self-test, each computed in another way."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_prc import calculate_precision_recall_full

from pipelines.evaluate import known_answers, measures, set_measures
from pipelines.evaluate.known_answers import EXPECTED, PROMPTS, REAL, run, wave
from pipelines.evaluate.suites import SUITES


@pytest.mark.parametrize("suite", SUITES)
def test_a_working_installation_passes(suite, capsys):
    assert known_answers.run_self_test([suite]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == len(EXPECTED[suite]) + 1
    assert out[-1] == "all passed"


@pytest.mark.parametrize(
    ("suite", "broken"),
    [
        ("coco10k", ("frechet_distance", lambda a, b: 1.0)),
        ("imagenet50k", ("inception_score", lambda logits: (1.0, 0.0))),
        ("imagenet50k", ("precision_recall", lambda a, b, k: (0.5, 0.5))),
        ("demo", ("distance_of_spectra", lambda a, b: 0.0)),
        ("demo", ("high_pass", lambda images: images)),
        ("hpsv3_benchmark", ("mean_of", max)),
    ],
)
def test_a_broken_rule_is_found(suite, broken, monkeypatch, capsys):
    monkeypatch.setattr(measures if hasattr(measures, broken[0]) else set_measures, *broken)
    assert known_answers.run_self_test([suite]) == 1
    assert "FAIL  " in capsys.readouterr().out


def test_a_number_that_is_missing_or_new_is_found(monkeypatch, capsys):
    monkeypatch.setitem(EXPECTED, "demo", {**EXPECTED["demo"], "fid": 1.0})
    assert known_answers.run_self_test(["demo"]) == 1
    assert "FAIL  demo  fid  nan, not 1" in capsys.readouterr().out
    monkeypatch.setitem(EXPECTED, "demo", {"spectrum": EXPECTED["demo"]["spectrum"]})
    assert known_answers.run_self_test(["demo"]) == 1


def features(count, frequency):
    return wave(count, 40, frequency).numpy()


def frechet(a, b):
    """Return the distance by the textbook formula."""
    product = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * product)


def test_frechet_distances():
    made, real = features(PROMPTS, 0.731), features(REAL, 0.517)
    assert EXPECTED["coco10k"]["fid"] == pytest.approx(frechet(made[:, :12], real[:, :12]), rel=1e-8)
    assert EXPECTED["coco10k"]["pfid"] == EXPECTED["coco10k"]["fid"] == EXPECTED["classes"]["frechet"]
    made = features(3 * PROMPTS, 0.731)
    assert EXPECTED["imagenet50k"]["fid"] == pytest.approx(frechet(made[:, :12], real[:, :12]), rel=1e-8)
    assert EXPECTED["demo"]["imagenet_frechet"] == EXPECTED["imagenet50k"]["fid"]
    assert EXPECTED["imagenet50k"]["sfid"] == pytest.approx(frechet(made[:, 12:24], real[:, 12:24]), rel=1e-8)


def test_inception_score_precision_and_recall():
    made, real = torch.from_numpy(features(3 * PROMPTS, 0.731)), torch.from_numpy(features(REAL, 0.517))
    found = isc_features_to_metric(4 * made[:, 24:], splits=10, shuffle=True, rng_seed=2020)
    known = EXPECTED["imagenet50k"]
    assert known["inception_score"] == pytest.approx(found["inception_score_mean"], rel=1e-9)
    precision, recall = calculate_precision_recall_full(made[:, :12], real[:, :12], 3, 1000)
    assert (known["precision"], known["recall"]) == pytest.approx((float(precision), float(recall)))


def test_means_and_categories():
    scores = np.abs(features(PROMPTS, 0.731))
    names = ("hpsv3", "hpsv2.1", "vqa_score", "clip_score")
    assert [EXPECTED["coco10k"][n] for n in names] == pytest.approx(scores[:, :4].mean(0).tolist())
    categories = np.array(["abc"[i * i % 7 % 3] for i in range(PROMPTS)])
    means = {name: scores[categories == name, 0].mean() for name in "abc"}
    known = EXPECTED["hpsv3_benchmark"]
    assert {name: known[f"hpsv3/{name}"] for name in "abc"} == pytest.approx(means)
    assert known["hpsv3"] == pytest.approx(np.mean(list(means.values())))
    assert known["hpsv3"] != pytest.approx(scores[:, 0].mean(), rel=1e-3)  # the categories are of different sizes


def test_dpg_by_hand():
    # a: 4/4, 1/4, 2/4, 3/4; b: 3/3, 0/3, 1/3, 3/3; c, whose child comes first: 0/2, 2/2, 0/2, 0/2
    crops = {"a": [1, 1 / 4, 2 / 4, 3 / 4], "b": [1, 0, 1 / 3, 1], "c": [0, 1, 0, 0]}
    assert EXPECTED["dpg"]["dpg"] == pytest.approx(100 * np.mean([np.mean(c) for c in crops.values()]))
    # entity: a1 of yyny.. = 3/4, a2 = 3/4, b1 = 3/4, c2 = 1/4
    assert EXPECTED["dpg"]["dpg/entity"] == pytest.approx(100 * (3 + 3 + 3 + 1) / 16)
    # the last crops, before zeroing: yyny, yyy, yn
    assert EXPECTED["dpg"]["dpg_official/attribute"] == pytest.approx(100 * (0 + 1) / 2)
    assert EXPECTED["dpg"]["dpg_official/entity"] == pytest.approx(100 * (1 + 1 + 1 + 0) / 4)


def test_geneval_by_hand():
    # of the four scenes the second's cat is too faint, the third has three cats and its dog in a cat's place
    right = {"single_object": 2, "two_object": 2, "counting": 1, "colors": 2, "position": 1, "color_attr": 2}
    known = EXPECTED["geneval"]
    assert {tag: known[f"geneval-hf/{tag}"] for tag in right} == {tag: n / 4 for tag, n in right.items()}
    assert known["geneval-hf"] == pytest.approx(sum(right.values()) / 24)


def test_demo_distances_of_equal_images_are_none():
    evaluated = known_answers._made_up("demo")
    same = replace(evaluated, real=evaluated.made, repeats=1, generations=evaluated.generations)
    values = {row["metric"]: row["value"] for m in SUITES["demo"].measures for row in m.rows(same)}
    assert values == pytest.approx({**dict.fromkeys(values, 0.0), "high_frequency_power": 1.0}, abs=1e-12)
    assert all(run("demo")[name] > 0.01 for name in values)
