import pytest

from asymflow.metrics.long_text import count_matches, split_units


def test_units_are_words_in_lower_case_or_characters():
    assert split_units("Café — OPEN\n  24/7!", chinese=False) == ["café", "open", "247"]
    assert split_units("开门, Open!", chinese=True) == ["开", "门", "O", "p", "e", "n"]
    assert split_units(" …", chinese=False) == []


@pytest.mark.parametrize(
    ("expected", "reply", "chinese", "matches"),
    [
        (["Open daily", "Open"], "OPEN daily", False, (2, 3)),  # a word counts as often as it is there
        (["Open daily"], "open open open", False, (1, 2)),
        (["daily open"], "Open, daily.", False, (2, 2)),  # the order does not matter
        (["Open"], "No text recognized.", False, (0, 1)),
        (["text"], "", False, (0, 1)),
        (["你好"], "好好", True, (1, 2)),
    ],
)
def test_matches(expected, reply, chinese, matches):
    assert count_matches(expected, reply, chinese) == matches


def test_a_text_without_letters_has_no_score():
    with pytest.raises(ValueError, match="has no letters or digits"):
        count_matches(["…"], "open", False)
