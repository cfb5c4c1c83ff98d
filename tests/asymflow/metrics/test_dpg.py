import csv
import itertools

import pytest

from asymflow.metrics.dpg import COLUMNS, category_scores, parse_questions, question_scores, score_prompt, total
from asymflow.text_files import read_text

CHAIN = {1: [0], 2: [1], 3: [2]}
BACKWARDS = {3: [2], 2: [1], 1: [0]}


@pytest.mark.parametrize(
    ("parents", "yes", "scores"),
    [
        (CHAIN, {1, 2, 3}, [1, 1, 1]),
        (CHAIN, {2, 3}, [0, 0, 0]),  # a no takes the whole chain
        (CHAIN, {1, 3}, [1, 0, 0]),
        (CHAIN, {1, 2}, [1, 1, 0]),
        (CHAIN, {3}, [0, 0, 0]),
        (CHAIN, set(), [0, 0, 0]),
        (BACKWARDS, {1, 2, 3}, [1, 1, 1]),
        (BACKWARDS, {2, 3}, [1, 0, 0]),  # 3 is looked at before 2 is set to 0 by 1
        (BACKWARDS, {1, 3}, [0, 0, 1]),
        ({2: [1], 1: [0], 3: [2]}, {2, 3}, [0, 0, 0]),  # 2 sees 1's own answer, 3 comes after both
        ({3: [2], 1: [0], 2: [1]}, {2, 3}, [1, 0, 0]),
        ({1: [0], 2: [0], 3: [1, 2]}, {1, 3}, [1, 0, 0]),  # one parent of two is enough
        ({1: [0], 2: [0], 3: [2, 1]}, {2, 3}, [0, 1, 0]),
        ({1: [0], 2: [0], 3: [1, 2]}, {1, 2, 3}, [1, 1, 1]),
        ({1: [0], 2: [0, 1]}, {2}, [0, 0]),  # 0 beside a parent is no parent
        ({1: [0], 2: [0]}, {2}, [0, 1]),
        ({7: [0], 9: [7]}, {9}, [0, 0]),
        ({1: [1], 2: [1]}, {1, 2}, [1, 1]),  # its own parent changes nothing
    ],
)
def test_children_of_a_no_score_0(parents, yes, scores):
    found = question_scores(parents, {question: question in yes for question in parents})
    assert list(found) == list(parents)
    assert found == dict(zip(parents, scores, strict=True))


def test_in_order_a_question_counts_where_it_and_all_above_it_are_yes():
    parents = {1: [0], 2: [1], 3: [1], 4: [2, 3], 5: [4, 0]}
    above = {1: {1}, 2: {1, 2}, 3: {1, 3}, 4: {1, 2, 3, 4}, 5: {1, 2, 3, 4, 5}}
    for said in itertools.product([False, True], repeat=5):
        answers = dict(zip(parents, said, strict=True))
        expected = {q: float(all(answers[p] for p in above[q])) for q in parents}
        assert question_scores(parents, answers) == expected


def test_a_prompt_is_the_mean_over_crops_of_means_over_questions():
    answers = [{1: True, 2: True, 3: False}, {1: False, 2: True, 3: True}]
    assert score_prompt(CHAIN, answers) == pytest.approx((2 / 3 + 0) / 2)
    assert score_prompt(CHAIN, answers[::-1]) == score_prompt(CHAIN, answers)
    assert score_prompt(CHAIN, [dict.fromkeys(CHAIN, True)] * 4) == 1.0
    assert total([1.0, 0.5, 0.0]) == pytest.approx(50.0)


@pytest.mark.parametrize(
    ("parents", "answers", "named"),
    [
        (CHAIN, [{1: True, 2: True}], "no answer to question 3"),
        (CHAIN, [dict.fromkeys(CHAIN, True), {1: True, 3: True}], "no answer to question 2"),
        (CHAIN, [{1: True, 2: True, 3: True, 8: True}], "question 8, which does not exist"),
        ({1: [0], 2: [5]}, [{1: True, 2: True}], "question 2 depends on 5"),
        ({}, [{}], "no questions"),
        (CHAIN, [], "no crops"),
    ],
)
def test_invalid_arguments_are_named(parents, answers, named):
    with pytest.raises(ValueError, match=named):
        score_prompt(parents, answers)


@pytest.mark.parametrize("scores", [[], [1.5], [-0.1], [float("nan")]])
def test_invalid_totals_are_refused(scores):
    with pytest.raises(ValueError):
        total(scores)


ROWS = [
    ("b9", "a red cat, and a dog", "", 1, "0", "entity", "whole", "entity - whole (cat)", "Is there a cat?"),
    ("b9", "a red cat, and a dog", "", 2, "1", "attribute", "color", "attribute - color (cat, red)", "Is it red?"),
    ("b9", "a red cat, and a dog", "", 3, "0", "entity", "whole", "entity - whole (dog)", "Is there a dog?"),
    ("a1", 'the "sea"\nat night', "", 1, "0", "global", "", "global - (night)", "Is it night?"),
    ("a1", 'the "sea"\nat night', "", 2, "1, 3", "relation", "spatial", "relation - spatial (sea)", "Near?"),
    ("a1", 'the "sea"\nat night', "", 3, "0", "entity", "whole", "entity - whole (sea)", "Is there a sea?"),
]


def write(folder, rows, columns=COLUMNS):
    path = folder / "dpg_bench.csv"
    with open(path, "w", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return read_text(path), str(path)


def test_the_file(tmp_path):
    items = parse_questions(*write(tmp_path, ROWS))
    assert list(items) == ["b9", "a1"]
    assert items["b9"].text == "a red cat, and a dog"
    assert items["a1"].text == 'the "sea"\nat night'
    assert items["b9"].parents == {1: [0], 2: [1], 3: [0]}
    assert items["a1"].parents == {1: [0], 2: [1, 3], 3: [0]}
    assert items["b9"].questions[2] == "Is it red?"
    assert items["a1"].categories == {1: "global", 2: "relation", 3: "entity"}


def test_official_scoring_drops_the_first_row(tmp_path):
    assert list(parse_questions(*write(tmp_path, ROWS), official=True)) == ["a1"]
    free = [ROWS[0], ROWS[2], *ROWS[3:]]
    items = parse_questions(*write(tmp_path, free), official=True)
    assert items["b9"].parents == {3: [0]}
    assert len(items["a1"].parents) == 3
    assert list(parse_questions(*write(tmp_path, [ROWS[0], *ROWS[3:]]), official=True)) == ["a1"]


def changed(row, **values):
    return tuple(values.get(name, value) for name, value in zip(COLUMNS, row, strict=True))


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([ROWS[0], changed(ROWS[1], dependency="1;2")], "line 3: dependency is '1;2'"),
        ([changed(ROWS[0], dependency="")], "line 2: dependency is ''"),
        ([changed(ROWS[0], dependency="-1")], "line 2: dependency is '-1'"),
        ([changed(ROWS[0], proposition_id="1.5")], "line 2: proposition_id is '1.5'"),
        ([changed(ROWS[0], proposition_id="0")], "line 2: proposition_id is '0'"),
        ([ROWS[0], ROWS[0]], "line 3: question 1 of item b9 is there twice"),
        ([ROWS[0], ROWS[3], ROWS[1]], "item b9 has other rows"),
        ([ROWS[0], ROWS[1][:5]], "line 3: the row has 5 columns, not 9"),
        ([changed(ROWS[0], question_natural_language="")], "line 2: .* is empty"),
        ([changed(ROWS[0], item_id="")], "line 2: .* is empty"),
        ([changed(ROWS[0], dependency="4")], "item b9: question 1 depends on 4"),
        ([], "no questions"),
    ],
)
def test_invalid_rows_are_refused(tmp_path, rows, named):
    with pytest.raises(ValueError, match=named):
        parse_questions(*write(tmp_path, rows))


def test_columns_that_are_missing(tmp_path):
    columns = [name for name in COLUMNS if name not in ("tuple", "dependency")]
    with pytest.raises(ValueError, match="no column dependency, tuple"):
        parse_questions(*write(tmp_path, [], columns))
    with pytest.raises(ValueError, match="no column item_id"):
        parse_questions("", "empty.csv")


def test_categories(tmp_path):
    items = parse_questions(*write(tmp_path, ROWS))
    answers = {
        "b9": [{1: True, 2: True, 3: True}, {1: False, 2: True, 3: True}],
        "a1": [{1: True, 2: True, 3: False}, {1: True, 2: True, 3: True}],
    }
    ours = category_scores(items, answers)
    assert list(ours) == ["attribute", "entity", "global", "relation"]
    assert ours == pytest.approx({"attribute": 50, "entity": 100 * 4 / 6, "global": 100, "relation": 50})
    official = category_scores(items, answers, official=True)  # the second crops, and no zeroing
    assert official == pytest.approx({"attribute": 100, "entity": 100 * 2 / 3, "global": 100, "relation": 100})


def test_categories_of_other_items_or_none(tmp_path):
    items = parse_questions(*write(tmp_path, ROWS))
    crop = {1: True, 2: True, 3: True}
    with pytest.raises(ValueError, match="different items, a1 among"):
        category_scores(items, {"b9": [crop]})
    with pytest.raises(ValueError, match="no crops of item a1"):
        category_scores(items, {"b9": [crop], "a1": []})
    with pytest.raises(ValueError, match="no answer to question 3"):
        category_scores(items, {"b9": [crop], "a1": [{1: True, 2: True}]}, official=True)


def test_the_reference_drops_the_first_row_of_the_first_prompt():
    parents = {1: [0], 2: [1], 3: [0], 4: [2, 3]}
    answers = [{1: False, 2: True, 3: True, 4: True}, {1: True, 2: True, 3: False, 4: True}]
    assert score_prompt(parents, answers) == pytest.approx((1 / 4 + 2 / 4) / 2)
    assert score_prompt(parents, answers, official=True) == pytest.approx((3 / 3 + 1 / 3) / 2)
    with pytest.raises(ValueError, match="no answer to question 1"):
        score_prompt(parents, [{2: True, 3: True, 4: True}], official=True)
    with pytest.raises(ValueError, match="there are no questions"):
        score_prompt({1: [0]}, [{1: True}], official=True)
