import random

import pytest

from asymflow.metrics.geneval import TASKS, judge, keep_detections, overall, relations


def box(x, y, width=10.0, height=10.0, score=0.9):
    """By its centre."""
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2, score)


def want(name, count=1, **more):
    return {"class": name, "count": count, **more}


def no_color(name, found):
    raise AssertionError("a colour was asked for")


@pytest.mark.parametrize(
    ("tag", "scores", "kept"),
    [
        ("single_object", [0.3, 0.31, 0.9], [0.9, 0.31]),
        ("single_object", [0.3], []),
        ("single_object", [], []),
        ("two_object", [0.5, 0.2, 0.7], [0.7, 0.5]),
        ("counting", [0.9, 0.91, 0.5, 0.99], [0.99, 0.91]),
        ("counting", [0.9], []),
        ("colors", [0.35], [0.35]),
        ("position", [0.35, 0.1], [0.35]),
        ("color_attr", [0.35], [0.35]),
        ("single_object", [0.4 + i / 100 for i in range(20)], [0.4 + i / 100 for i in range(19, 3, -1)]),
    ],
)
def test_detections_that_count(tag, scores, kept):
    assert [found[4] for found in keep_detections([box(0, 0, score=s) for s in scores], tag)] == kept


def test_equal_scores_keep_their_order():
    boxes = [box(i, 0, score=0.5) for i in range(20)]
    assert keep_detections(boxes, "two_object") == boxes[:16]


@pytest.mark.parametrize(
    ("include", "exclude", "counts", "correct"),
    [
        ([want("dog")], [], {"dog": 1}, True),
        ([want("dog")], [], {"dog": 3}, True),
        ([want("dog")], [], {}, False),
        ([want("dog")], [], {"cat": 2}, False),
        ([want("dog"), want("cat")], [], {"dog": 1, "cat": 1}, True),
        ([want("dog"), want("cat")], [], {"dog": 2}, False),
        ([want("dog"), want("cat")], [], {"cat": 2}, False),
        ([want("dog", 3)], [want("dog", 4)], {"dog": 3}, True),
        ([want("dog", 3)], [want("dog", 4)], {"dog": 2}, False),
        ([want("dog", 3)], [want("dog", 4)], {"dog": 4}, False),
        ([want("dog", 3)], [want("dog", 4)], {"dog": 5}, False),
        ([want("dog", 3)], [want("dog", 4)], {"dog": 3, "cat": 9}, True),
        ([], [want("dog")], {}, True),
        ([], [want("dog")], {"dog": 1}, False),
        ([], [], {"dog": 1}, True),
    ],
)
def test_counts(include, exclude, counts, correct):
    objects = {name: [box(20 * i, 0) for i in range(count)] for name, count in counts.items()}
    found, reasons = judge({"include": include, "exclude": exclude}, objects, no_color)
    assert found is correct and bool(reasons) is not correct


@pytest.mark.parametrize(
    ("count", "colors", "correct"),
    [
        (1, ["red"], True),
        (1, ["blue"], False),
        (1, ["blue", "red"], False),  # only the best boxes are looked at, as many as were asked for
        (1, ["red", "blue"], True),
        (2, ["red", "red"], True),
        (2, ["red", "blue"], False),
        (2, ["red", "red", "blue"], True),
        (2, ["red", "blue", "red"], False),
        (2, ["red"], False),
    ],
)
def test_colors(count, colors, correct):
    boxes = [box(20 * i, 0, score=0.9 - i / 100) for i in range(len(colors))]
    of = {found: color for found, color in zip(boxes, colors, strict=True)}
    metadata = {"include": [want("cup", count, color="red")]}
    assert judge(metadata, {"cup": boxes}, lambda name, found: of[found])[0] is correct


def test_two_objects_of_two_colors_are_not_mixed_up():
    metadata = {"include": [want("cup", color="red"), want("dog", color="blue")]}
    objects = {"cup": [box(0, 0)], "dog": [box(50, 0)]}
    right, wrong = {"cup": "red", "dog": "blue"}, {"cup": "blue", "dog": "red"}
    assert judge(metadata, objects, lambda name, _: right[name]) == (True, [])
    correct, reasons = judge(metadata, objects, lambda name, _: wrong[name])
    assert not correct and len(reasons) == 2
    assert reasons[0] == "expected 1 red of cup, found blue"


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (-50, 0, {"left of"}),
        (50, 0, {"right of"}),
        (0, -50, {"above"}),
        (0, 50, {"below"}),
        (-50, -50, {"left of", "above"}),  # (50 - 2) / 70.7 = 0.68 on both axes
        (50, 50, {"right of", "below"}),
        (50, -50, {"right of", "above"}),
        (-50, 50, {"left of", "below"}),
        (-50, 20, {"left of"}),  # 18 / 53.9 = 0.33
        (20, 50, {"below"}),
        (0, 0, set()),
        (2, 0, set()),  # a tenth of both widths
        (2, 2, set()),
        (-2, 1, set()),
        (2.0005, 0, set()),  # less than 1e-3 beyond it
        (3, 0, set()),  # 1 / 3
        (4, 0, set()),  # 2 / 4 is not more than a half
        (4.1, 0, {"right of"}),
        (-4.1, 0, {"left of"}),
        (0, 4.1, {"below"}),
        (0, -4.1, {"above"}),
        (7, 7, {"right of", "below"}),  # 5 / 9.9 = 0.505
        (6, 6, set()),  # 4 / 8.5 = 0.47
    ],
)
def test_relations_to_a_box_of_the_same_size(x, y, expected):
    assert relations(box(x, y), box(0, 0)) == expected


def test_sizes_of_both_matter_axis_by_axis():
    wide, tall = box(0, 0, width=100, height=10), box(30, 0, width=100, height=10)
    assert relations(tall, wide) == set()  # 30 - 20 = 10, a third of 30
    assert relations(box(30, 0), wide) == {"right of"}  # 30 - 11 = 19, 0.63 of 30
    assert relations(box(0, 30), wide) == {"below"}


POSITION = {"include": [want("cat"), want("dog", position=["left of", 0])]}


@pytest.mark.parametrize(
    ("cats", "dogs", "correct"),
    [
        ([(50, 0)], [(0, 0)], True),
        ([(0, 0)], [(50, 0)], False),
        ([(50, 0)], [(50, 50)], False),
        ([(50, 0), (-50, 0)], [(0, 0)], True),  # only the best cat was asked for
        ([(-50, 0), (50, 0)], [(0, 0)], False),
        ([], [(0, 0)], False),
        ([(50, 0)], [], False),
    ],
)
def test_positions(cats, dogs, correct):
    objects = {"cat": [box(*at) for at in cats], "dog": [box(*at) for at in dogs]}
    assert judge(POSITION, objects, no_color)[0] is correct


def test_every_pair_of_several_must_hold():
    metadata = {"include": [want("cat", 2), want("dog", 2, position=["above", 0])]}
    cats = [box(0, 100), box(40, 100)]
    assert judge(metadata, {"cat": cats, "dog": [box(0, 0), box(40, 0)]}, no_color)[0]
    correct, reasons = judge(metadata, {"cat": cats, "dog": [box(0, 0), box(40, 200)]}, no_color)
    assert not correct and reasons == ["expected dog above the other"]


def test_a_target_that_does_not_hold_is_none():
    metadata = {"include": [want("cat", color="red"), want("dog", position=["left of", 0])]}
    objects = {"cat": [box(50, 0)], "dog": [box(0, 0)]}
    assert judge(metadata, objects, lambda *_: "blue")[1] == [
        "expected 1 red of cat, found blue",
        "nothing for dog to be left of",
    ]


@pytest.mark.parametrize(
    ("position", "named"),
    [(["beside", 0], "position is 'beside'"), (["above", 1], "request 1, which is not"), (["above", -1], "not before")],
)
def test_metadata_that_make_no_sense(position, named):
    metadata = {"include": [want("cat"), want("dog", position=position)]}
    with pytest.raises(ValueError, match=named):
        judge(metadata, {"cat": [box(0, 0)], "dog": [box(9, 9)]}, no_color)


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_detections_and_the_size_of_the_picture_do_not_matter(seed):
    rng = random.Random(seed)

    def some():
        places = [[rng.uniform(0, 500), rng.uniform(0, 500), rng.uniform(20, 90), rng.uniform(20, 90)] for _ in "123"]
        return [box(*place, rng.random()) for place in places]

    found, tag = {"cat": some(), "dog": some()}, rng.choice(TASKS)
    metadata = {"include": [want("cat", color="red"), want("dog", position=[rng.choice(["left of", "below"]), 0])]}

    def verdict(detections):
        objects = {name: keep_detections(boxes, tag) for name, boxes in detections.items()}
        return judge(metadata, objects, lambda name, at: "red" if at[4] > 0.5 else "blue")

    shuffled = {name: rng.sample(boxes, len(boxes)) for name, boxes in found.items()}
    larger = {name: [(*(4 * side for side in b[:4]), b[4]) for b in boxes] for name, boxes in found.items()}
    assert verdict(shuffled) == verdict(found) == verdict(larger)


def test_overall_is_the_mean_of_six_tasks():
    assert overall({task: i / 10 for i, task in enumerate(TASKS)}) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="needed are those of"):
        overall({task: 1.0 for task in TASKS[:5]})
