"""Measures on scores given as numbers; the suites' own are checked on known answers in test_known_answers.py."""

import json
from dataclasses import dataclass, field

import pytest
from PIL import Image

from asymflow.metrics import dpg
from pipelines.evaluate.config import Bootstrap
from pipelines.evaluate.image_sets import ImageSet
from pipelines.evaluate.measures import DpgCategories, Mean, MeasureInput, ScoredImages, dpg_item, dpg_score, mean_of
from pipelines.evaluate.prompts import Prompt, list_generations

PROMPTS = [Prompt("0", "a cat", "animals"), Prompt("1", "a bus", "things"), Prompt("2", "a dog", "animals")]
VALUES = [1.0, 3.0, 10.0, 20.0, 5.0, 7.0]


@dataclass
class Given:
    """Scores given as rows, with the interface of `Scores`."""

    plain: list
    protocol: dict = field(default_factory=lambda: {"metric": "given"})

    def rows(self):
        return self.plain


def evaluated(rows, prompts=PROMPTS, repeats=2, resamples=0):
    made = ScoredImages(ImageSet("made", {}, {}), {"given": Given(rows)})
    settings = Bootstrap(resamples=resamples, set_resamples=0)
    return MeasureInput(list_generations(prompts, repeats), repeats, made, None, None, settings)


SCORED = evaluated([{"score": value, "double": 2 * value} for value in VALUES])


def test_the_mean_is_over_prompts_with_all_their_images():
    (row,) = Mean("m", "given").rows(SCORED)
    assert (row["metric"], row["value"], row["category"]) == ("m", mean_of(VALUES), "")
    assert (row["prompts"], row["pictures"], row["low"]) == (3, 6, None)
    assert row["protocol"] == {
        "metric": "m", "scorer": {"metric": "given"}, "pictures": 6, "seeds": "prompt x 2 + repeat",
    }  # fmt: skip


def test_by_category_the_overall_value_is_the_mean_of_the_categories():
    overall, animals, things = Mean("m", "given", by_category=True).rows(SCORED)
    assert (animals["category"], animals["value"], animals["prompts"]) == ("animals", 4.0, 2)
    assert (things["category"], things["value"], things["prompts"]) == ("things", 15.0, 1)
    assert overall["value"] == 9.5
    assert overall["protocol"]["mean"] == "of categories"


def test_another_column_and_scale_are_taken():
    (row,) = Mean("m", "given", column="double", scale=100).rows(SCORED)
    assert row["value"] == pytest.approx(200 * mean_of(VALUES))


def test_an_interval_holds_the_value_and_comes_with_resamples_alone():
    (row,) = Mean("m", "given").rows(evaluated([{"score": value} for value in VALUES], resamples=200))
    assert row["low"] < row["value"] < row["high"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_an_error(value):
    rows = [{"score": value}, *({"score": 1.0} for _ in VALUES[1:])]
    with pytest.raises(ValueError, match="m .* is (nan|inf): a score of its images is not finite"):
        Mean("m", "given").rows(evaluated(rows))


def test_real_images_are_asked_for_with_the_reason():
    with pytest.raises(ValueError, match="fid needs real images: give reference.source=FOLDER, or an .npz with images"):
        SCORED.real_images("fid")


QUESTIONS = {
    "parents": {"1": [0], "2": [1]},
    "questions": {"1": "Is there a cat?", "2": "Is it red?"},
    "categories": {"1": "entity", "2": "attribute"},
}
ASKED = Prompt("a", "a red cat", data=QUESTIONS)
ANSWERED = [{"answers": json.dumps({"1": first, "2": second})} for first, second in [(True, True), (False, True)]]


def test_a_dpg_score_is_that_of_the_reference():
    item = dpg_item(ASKED)
    assert item.parents == {1: [0], 2: [1]}
    expected = dpg.score_prompt(item.parents, [{1: True, 2: True}, {1: False, 2: True}])
    assert dpg_score(ASKED, ANSWERED) == expected


def test_dpg_has_a_row_per_category_and_rule():
    rows = DpgCategories("given").rows(evaluated(ANSWERED, [ASKED]))
    found = {(row["metric"], row["category"]): row["value"] for row in rows}
    # without its parent a question counts as no; the reference's rule takes the last crop, before that
    assert found == {
        ("dpg", "entity"): 50, ("dpg", "attribute"): 50, ("dpg_official", "entity"): 0,
        ("dpg_official", "attribute"): 100,
    }  # fmt: skip


def test_images_are_read_once_in_their_order(tmp_path):
    files = {name: str(tmp_path / f"{name}.png") for name in ("b", "a")}
    for level, file in zip((0, 255), files.values(), strict=True):
        Image.new("RGB", (4, 2), (level,) * 3).save(file)
    images = ScoredImages(ImageSet("made", files, {}), {})
    assert images.tensor.shape == (2, 3, 2, 4)
    assert images.tensor[:, 0, 0, 0].tolist() == [-1, 1]
    assert images.tensor is images.tensor
