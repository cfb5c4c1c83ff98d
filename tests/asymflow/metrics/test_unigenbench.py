import pytest

from asymflow.metrics.unigenbench import build_question, parse_scores, primary_dimension


def test_the_question_fills_every_field_once():
    template = "{prompt} {prompt} | {testpoints} | {definitions} | {descriptions}"
    defined = {"Style": "how it is painted", "Attribute - Color": "colors", "Grammar - Negation": "not"}
    points, descriptions = ["Attribute - Color", "Style"], ["{prompt}", "oil"]
    assert build_question(template, "a red {testpoints}", points, descriptions, defined) == (
        "a red {testpoints} a red {testpoints} | ['Attribute - Color', 'Style'] | "
        "\nAttribute - Color: colors\nStyle: how it is painted | \nAttribute - Color: {prompt}\nStyle: oil"
    )
    with pytest.raises(ValueError, match="the test point 'Shape' has no definition; there are Style"):
        build_question(template, "a cat", ["Shape"], ["round"], defined)


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ("<analysis>['a', 'b']</analysis>\n<score>[1, 0]</score>", [1, 0]),
        ("<score>\n[0,\n1]\n</score> <score>[1, 1]</score>", [0, 1]),
        ("<score>[2, 1]</score>", [0, 1]),
        ("<score>[1]</score>", None),
        ("<score>(1, 0)</score>", None),
        ("<score>[1, </score>", None),
        ("<score>1, 0", None),
        ("<score>[open('x'), 1]</score>", None),
        ("", None),
    ],
)
def test_scores_are_a_list_of_one_number_per_test_point(reply, scores):
    assert parse_scores(reply, 2) == scores


def test_primary_dimensions():
    assert primary_dimension("Entity Layout - Two-Dimensional Space") == "Entity Layout"
    assert primary_dimension("World Knowledge") == "World Knowledge"
