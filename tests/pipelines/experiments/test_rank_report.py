"""Rank report on synthetic results with known answers."""

import pytest
import scipy.stats

from pipelines.experiments.rank_report import (
    by_loss,
    claim_table,
    claims,
    curve_figure,
    floor_table,
    interval,
    markdown,
    rank_figure,
    rank_table,
    share_of_steps,
    verdict,
)

VALUES = {("pca", 0): 10.0, ("pca", 2): 9.0, ("pca", 8): 7.0, ("pca", 32): 7.5, ("pca", 768): 20.0,
          ("random", 8): 10.0, ("repa", 8): 6.0}  # fmt: skip


def row(kind, rank, seed, value, figure="rank", step=100, floor=None):
    name = f"r={rank}" + ("" if kind == "pca" else f" {kind}")
    return {
        "name": name, "rank": rank, "kind": kind, "seed": seed, "figure": figure, "step": step, "floor": floor,
        "loss": 0.1, "metrics": {"frechet": value, "other": 1.0}, "pretrained": "", "evaluated": "",
    }  # fmt: skip


@pytest.fixture
def rows():
    """Return rows whose seeds shift all variants alike, up to a small difference."""
    found = []
    for seed, shift in ((0, 0.0), (1, 3.0), (2, -2.0)):
        noise = 0.01 * seed
        found += [row(kind, rank, seed, value + shift + noise * rank / 8) for (kind, rank), value in VALUES.items()]
        for rank, values in {0: (10, 13), 8: (7, 7.5)}.items():
            found += [
                row("pca", rank, seed, v + shift + noise * rank, "floor", floor=f)
                for f, v in zip((0.04, 0.0), values, strict=True)
            ]
            found.append(row("pca", rank, seed, 2 * values[0] + shift + noise * rank, "curve", step=50))
    return found


def test_intervals_are_students():
    values = [1.0, 2.0, 4.0, 4.5]
    mean, half = interval(values)
    low, high = scipy.stats.t.interval(0.95, 3, loc=mean, scale=scipy.stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert interval([3.0]) == (3.0, float("inf"))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ((-2.0, 1.0), "held"),
        ((2.0, 1.0), "the opposite"),
        ((-2.0, 3.0), "undecided"),
        ((-2.0, float("inf")), "undecided"),
    ],
)
def test_a_verdict_needs_the_whole_interval_on_its_side(found, words):
    assert verdict(found) == words


def test_claims_are_compared_seed_by_seed(rows):
    found = {claim["claim"]: claim for claim in claims(rows, "frechet")}
    assert found["r = 8 beats r = 0"]["difference"] == pytest.approx(-3, abs=0.05)
    assert found["r = 8 beats r = 0"]["half_interval"] < 0.1  # though seeds differ by 5
    assert {name for name, claim in found.items() if claim["verdict"] == "held"} == {
        "r = 8 beats r = 0", "r = 8 beats a random subspace of rank 8", "r = 8 beats r = 32", "r = 8 beats r = 768",
        "r = 8 suffers less from no floor than r = 0", "REPA helps at r = 8", "r = 8 is ahead of r = 0 at step 50",
        "r = 8 needs fewer steps than r = 0 for the same (share of the steps)",
    }  # fmt: skip
    assert found["a random subspace of rank 8 is no better than r = 0"]["verdict"] == "undecided"


def test_share_of_steps_is_interpolated_from_the_curves():
    points = {0: {100: 10.0, 200: 8.0, 400: 4.0}, 8: {100: 9.0, 200: 5.0, 400: 3.0}}

    def run(seed, by_rank):
        return [
            row("pca", rank, seed, value, "rank" if step == 400 else "curve", step=step)
            for rank, values in by_rank.items()
            for step, value in values.items()
        ]

    ahead = run(0, points)  # down to 4 in the middle between 200 and 400
    behind = run(1, {0: points[8], 8: points[0]})
    early = run(2, {0: points[0], 8: {100: 4.0, 200: 3.0, 400: 2.0}})
    alone = run(3, {0: points[0], 8: {400: 2.0}})
    assert share_of_steps([*ahead, *behind, *early, *alone], "frechet", 8) == {0: 0.75, 1: 4 / 3, 2: 0.25}


def test_claims_by_the_loss_are_of_the_ends_alone(rows):
    losses = {("pca", 0): 0.2, ("pca", 8): 0.1, ("pca", 32): 0.3}
    known = [r for r in rows if (r["kind"], r["rank"]) in losses]
    told = [{**r, "loss": losses[r["kind"], r["rank"]] + r["seed"]} for r in known]
    ends = by_loss([*told, {**rows[1], "loss": None}])
    assert len(ends) == 9
    assert {r["figure"] for r in ends} == {"rank"}
    found = claims(ends, "loss")
    assert [(c["claim"], c["verdict"]) for c in found][0] == ("r = 8 beats r = 0", "held")
    assert by_loss([]) == []
    assert claims([], "loss") == []
    assert all("step" not in c["claim"] and "floor" not in c["claim"] for c in found)
    assert claim_table(found, "loss")[1][:2] == ["r = 8 beats r = 0", "-0.1 ± " + f"{found[0]['half_interval']:.2g}"]


def test_claims_need_finished_runs(rows):
    few = [r for r in rows if r["kind"] == "pca" and r["figure"] == "rank" and r["seed"] == 0]
    found = claims(few, "frechet")
    assert {claim["verdict"] for claim in found} == {"undecided"}  # one seed has no interval
    assert not any("REPA" in c["claim"] or "random" in c["claim"] or "floor" in c["claim"] for c in found)


def test_tables_and_figures_show_every_member(rows):
    lines = rank_table(rows)
    assert [line[0] for line in lines[1:]] == ["r=0", "r=2", "r=8", "r=32", "r=768", "r=8 random", "r=8 repa"]
    assert lines[1][3].startswith("10.33 ± ")
    assert lines[0][3:] == ["frechet", "other"]
    floors = [line[:2] for line in floor_table(rows)[1:]]
    assert floors == [["r=0", "0.04"], ["r=0", "0"], ["r=8", "0.04"], ["r=8", "0"]]
    assert markdown(lines).splitlines()[1] == "| --- | --- | --- | --- | --- |"
    axes = rank_figure(rows, "frechet").axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "2", "8", "32", "768"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["pca", "random", "repa"]
    assert len(curve_figure(rows, "frechet").axes[0].containers) == 2
