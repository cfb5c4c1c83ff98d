import math
from decimal import Decimal

import pytest
from PIL import Image

from pipelines.data.curate.filters import (
    Filters,
    Rejected,
    check_caption,
    check_dimensions,
    check_scores,
    read_label,
    read_scores,
)
from pipelines.data.curate.samples import Columns

SCORES = {"aesthetic": 6.0, "punsafe": 0.1, "pwatermark": 0.1, "similarity": 0.3}


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("score", [None, "high", math.nan, math.inf, -math.inf, 10**400])
def test_non_numeric_scores(name, score):
    scores = read_scores({**SCORES, name: score}, Columns())
    assert scores == {k: v for k, v in SCORES.items() if k != name}
    with pytest.raises(Rejected, match=f"no {name} score"):
        check_scores(scores, Filters())


@pytest.mark.parametrize("score", ["0.25", Decimal("0.25"), 0.25])
def test_scores_stored_as_text_or_decimals(score):
    assert read_scores({"similarity": score, "punsafe": True}, Columns()) == {"similarity": 0.25}


@pytest.mark.parametrize(("label", "number"), [(3, 3), ("3", 3), (3.0, 3), (Decimal(3), 3)])
def test_labels_stored_as_text_or_decimals(label, number):
    assert read_label({"y": label}, Columns(label="y")) == number


@pytest.mark.parametrize("label", [None, "cat", 2.5, -1, True, 2**31, float("nan")])
def test_non_numeric_labels(label):
    with pytest.raises(Rejected, match="no label"):
        read_label({"y": label}, Columns(label="y"))


def test_thresholds_include_their_ends():
    f = Filters()
    ends = {"aesthetic": f.min_aesthetic, "punsafe": f.max_punsafe, "pwatermark": f.max_pwatermark,
            "similarity": f.min_similarity}  # fmt: skip
    check_scores(ends, f)
    for name, step, word in (
        ("aesthetic", -1e-3, "below"), ("punsafe", 1e-3, "above"), ("pwatermark", 1e-3, "above"),
        ("similarity", -1e-3, "below"),
    ):  # fmt: skip
        with pytest.raises(Rejected, match=f"{name} {word} the threshold"):
            check_scores({**ends, name: ends[name] + step}, f)


def test_threshold_that_is_off_asks_for_no_score():
    off = Filters(min_aesthetic=None, max_punsafe=None, max_pwatermark=None, min_similarity=None)
    check_scores({}, off)
    check_scores({"aesthetic": -5.0, "punsafe": 1.0}, off)


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("", "empty caption"),
        ("x" * 2001, "caption too long"),
        ("https://example.com/a", "a URL or a file name"),
        ("see www.example.org for more", "a URL or a file name"),
        ("IMG_0023.JPG", "a URL or a file name"),
        ("photos at example.com/gallery", "a URL or a file name"),
    ],
)
def test_empty_captions(caption, reason):
    with pytest.raises(Rejected, match=reason):
        check_caption(caption, Filters())
    check_caption(caption, Filters(captions=False))


@pytest.mark.parametrize("caption", ["a cat", "Dr. Who, vol. 2", "a jpg artefact", "x" * 2000, "the .com boom"])
def test_accepted_captions(caption):
    check_caption(caption, Filters())


def test_sizes():
    f = Filters(min_side=64, max_aspect=2)
    check_dimensions(Image.new("L", (64, 128)), f)
    with pytest.raises(Rejected, match="too small"):
        check_dimensions(Image.new("L", (63, 100)), f)
    with pytest.raises(Rejected, match="too elongated"):
        check_dimensions(Image.new("L", (129, 64)), f)
