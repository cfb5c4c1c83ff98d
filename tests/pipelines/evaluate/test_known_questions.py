import pytest

from pipelines.evaluate.known_answers import EXPECTED
from pipelines.evaluate.known_questions import JUDGED
from pipelines.evaluate.suites import SUITES


@pytest.mark.parametrize("suite", JUDGED)
def test_prompts_and_rows_belong_together(suite):
    prompts, scores = JUDGED[suite]()
    assert set(scores) == set(SUITES[suite].scorers)
    assert all(len(rows) == len(prompts) for rows in scores.values())


def test_geneval2_by_hand():
    # the first prompt's probabilities are 1/4, 1/2 and 1, the second's 0.8, 0.1 and 0.1
    known = EXPECTED["geneval2"]
    assert known["soft_tifa_am"] == pytest.approx(100 * (1.75 / 3 + 1.0 / 3) / 2)
    assert known["soft_tifa_gm"] == pytest.approx(100 * ((1 / 8) ** (1 / 3) + 0.008 ** (1 / 3)) / 2)
    assert known["soft_tifa_am/object"] == pytest.approx(100 * (1.0 + 0.8 + 0.1) / 3)
    # "2" and "YES" are accepted, "No" and "no" are not
    assert known["tifa"] == pytest.approx(100 * (2 / 3 + 1 / 3) / 2)


def test_own_questions_by_hand():
    assert EXPECTED["questions"]["answered"] == pytest.approx(100 * (0.9 + 0.5 + 0.1) / 3)
    assert EXPECTED["questions"]["answered/object"] == pytest.approx(100 * (0.9 + 0.5) / 2)


def test_long_texts_by_hand():
    # "open" and "closed" of three words, none of two; one of two characters, four of four
    english, chinese = EXPECTED["longtext_en"], EXPECTED["longtext_zh"]
    assert english["text_score"] == pytest.approx(100 * 2 / 5)
    assert english["text_score/sign"] == pytest.approx(200 / 3)
    assert chinese["text_score"] == pytest.approx(100 * 5 / 6)


def test_unigenbench_by_hand():
    # the first prompt meets both points; the second has three, but a list of two scores
    known = EXPECTED["unigenbench"]
    assert known["unigenbench"] == pytest.approx(100 * 2 / 5)
    assert known["unreadable_replies"] == 50
    assert known["unigenbench/Attribute"] == pytest.approx(100 / 3)
    assert known["unigenbench_points/Attribute - Color"] == 50


def test_oneig_by_hand():
    # the third question depends on the second alone, which is answered yes; the word must be Yes
    known = EXPECTED["oneig_alignment"]
    assert known["oneig_alignment"] == pytest.approx((1 / 3 + 1 / 2 + 1 + 0) / 4)
