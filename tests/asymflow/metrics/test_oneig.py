import pytest

from asymflow.metrics.oneig import alignment_score

CHAIN = {"1": [0], "2": [1], "3": [2]}


def answers(text):
    return {str(i): letter == "y" for i, letter in enumerate(text, 1)}


@pytest.mark.parametrize(
    ("parents", "text", "score"),
    [
        (CHAIN, "yyy", 1.0),
        (CHAIN, "nyy", 1 / 3),  # the second depends on the first, but the third on the second alone
        (CHAIN, "yny", 1 / 3),
        (CHAIN, "yyn", 2 / 3),
        ({"1": [0], "2": [0], "3": [1, 2]}, "yny", 1 / 3),
        ({"1": [2], "2": [0]}, "yn", 0.0),  # a parent may follow
    ],
)
def test_a_question_counts_if_it_and_its_parents_are_met(parents, text, score):
    assert alignment_score(parents, answers(text)) == pytest.approx(score)


def test_questions_that_do_not_fit():
    with pytest.raises(ValueError, match="answers to 1, 2 do not fit the questions 1, 2, 3"):
        alignment_score(CHAIN, answers("yy"))
    with pytest.raises(ValueError, match="do not fit the questions none"):
        alignment_score({}, {})
    with pytest.raises(ValueError, match="a question depends on 7, which does not exist"):
        alignment_score({"1": [7]}, answers("y"))
