import json
from types import SimpleNamespace

import pytest

from pipelines.evaluate.config import Bootstrap
from pipelines.evaluate.image_sets import ImageSet
from pipelines.evaluate.measures import MeasureInput, ScoredImages
from pipelines.evaluate.prompts import Prompt, list_generations
from pipelines.evaluate.question_measures import (
    Pooled,
    PooledErrors,
    chinese_matches,
    english_matches,
    oneig_alignment,
    points_met,
    primary_dimensions,
    probability_by_group,
    soft_tifa_am,
    soft_tifa_gm,
    soft_tifa_gm_by_category,
    tifa,
    unreadable_replies,
)


def prompt(name, category, *groups):
    questions = [{"question": f"{name}?", "answers": ["Yes", "yes"], "group": group} for group in groups]
    return Prompt(name, name, category, {"questions": questions})


def row(*probabilities, words=()):
    return {"probabilities": json.dumps(probabilities), "words": json.dumps(words or ["Yes"] * len(probabilities))}


PROMPTS = [prompt("a", "3 atoms", "count", "object"), prompt("b", "10 atoms", "object"), prompt("c", "3 atoms", "verb")]
ROWS = [row(0.2, 0.8), row(0.4, 0.9), row(0.5), row(0.1), row(1.0), row(0.0)]  # two images per prompt


def table(measure, resamples=0):
    scores = SimpleNamespace(rows=lambda: ROWS, protocol={"metric": "given"})
    made = ScoredImages(ImageSet("made", {}, {}), {"given": scores})
    settings = Bootstrap(resamples=resamples, set_resamples=0)
    found = measure.rows(MeasureInput(list_generations(PROMPTS, 2), 2, made, None, None, settings))
    return {row["category"]: row for row in found}


def test_parts_are_pooled_by_category():
    found = table(Pooled("m", "given", probability_by_group))
    assert list(found) == ["count", "object", "verb"]
    assert Pooled("m", "given", probability_by_group).names == ()
    assert found["count"]["value"] == pytest.approx(30)
    assert found["verb"]["value"] == pytest.approx(50)
    assert found["object"]["value"] == pytest.approx(100 * (0.8 + 0.9 + 0.5 + 0.1) / 4)
    assert [row["prompts"] for row in found.values()] == [1, 2, 1]
    assert [row["pictures"] for row in found.values()] == [2, 4, 2]
    assert found["object"]["protocol"]["pooled"] == "parts of the category"


def test_an_overall_row_pools_all_parts():
    measure = Pooled("m", "given", probability_by_group, overall=True, scale=1)
    found = table(measure, resamples=200)
    assert list(found) == ["", "count", "object", "verb"]
    assert measure.names == ("m",)
    assert found[""]["value"] == pytest.approx((0.2 + 0.8 + 0.4 + 0.9 + 0.5 + 0.1 + 1.0 + 0.0) / 8)
    assert found[""]["prompts"] == 3
    assert found[""]["low"] < found[""]["value"] < found[""]["high"]
    assert found["count"]["low"] is None  # of one prompt


def test_categories_with_numbers_are_in_their_order():
    found = table(Pooled("m", "given", soft_tifa_gm_by_category))
    assert list(found) == ["3 atoms", "10 atoms"]
    assert found["3 atoms"]["value"] == pytest.approx(100 * ((0.2 * 0.8) ** 0.5 + (0.4 * 0.9) ** 0.5 + 1.0 + 0.0) / 4)


def test_values_of_a_prompt_are_means_over_its_images():
    rows = [row(0.25, 1.0, words=["Yes", "no"]), row(0.5, 0.5, words=["No", "no"])]
    assert soft_tifa_am(PROMPTS[0], rows) == pytest.approx((0.625 + 0.5) / 2)
    assert soft_tifa_gm(PROMPTS[0], rows) == pytest.approx(0.5)
    assert tifa(PROMPTS[0], rows) == pytest.approx(0.25)


def test_parts_of_replies():
    sign = Prompt("a", "a sign", "sign", {"text": ["Open", "daily"]})
    assert english_matches(sign, [{"reply": "open"}, {"reply": ""}]) == [("sign", 1, 2), ("sign", 0, 2)]
    assert chinese_matches(sign, [{"reply": "Opaily"}]) == [("sign", 6, 9)]
    points = Prompt("b", "b", data={"testpoints": ["Style", "Attribute - Color"]})
    rows = [{"reply": "<score>[0, 1]</score>"}, {"reply": "?"}]
    color, style = ("Attribute - Color", 1.0, 1.0), ("Style", 0.0, 1.0)
    assert points_met(points, rows) == [style, color, style, ("Attribute - Color", 0.0, 1.0)]
    assert primary_dimensions(points, rows[:1]) == [style, ("Attribute", 1.0, 1.0)]
    assert unreadable_replies(points, rows) == [("", 0.0, 1.0), ("", 1.0, 1.0)]
    assert (Pooled.better, PooledErrors.better) == ("high", "low")


def test_an_image_is_aligned_if_the_words_are_yes():
    asked = Prompt("a", "a", "Portrait", {"parents": {"1": [0], "2": [1]}, "questions": []})
    rows = [{"words": json.dumps(words)} for words in (["Yes", "Yes"], ["No", "Yes"], ["Yes", " Yes"])]
    assert oneig_alignment(asked, rows) == [("Portrait", 1.0, 1.0), ("Portrait", 0.0, 1.0), ("Portrait", 0.5, 1.0)]
