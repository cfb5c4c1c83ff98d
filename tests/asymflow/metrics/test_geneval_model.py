import json
from types import SimpleNamespace

import pytest
import torch

from asymflow.metrics.geneval_model import GenEval
from asymflow.metrics.mask2former import CLASSES, Detection


def found(name, x, score=0.95, width=20):
    mask = torch.zeros(64, 128, dtype=torch.bool)
    mask[20:40, x : x + width] = True
    return Detection(CLASSES.index(name), name, (float(x), 20.0, float(x + width), 40.0, score), mask)


def brightest(image, mask, box, name):
    """Stands in for CLIP: an object's colour by its pixels' largest channel."""
    assert mask[int(box[1]), int(box[0])]
    assert mask.sum() == (box[2] - box[0]) * (box[3] - box[1])
    return ("red", "green", "blue")[int(image[:, mask].float().mean(1).argmax())]


def geneval(*pictures, min_score=0.3):
    """Of a detector that finds these, and `brightest`."""
    detector = SimpleNamespace(min_score=min_score, protocol={"metric": "mask2former"})
    colors = SimpleNamespace(protocol={"metric": "geneval_colors"})
    return GenEval(
        type("Detector", (), {"__call__": lambda self, images: list(pictures), **vars(detector)})(),
        type("Colors", (), {"__call__": lambda self, *asked: brightest(*asked), **vars(colors)})(),
    )


IMAGES = torch.zeros(1, 3, 64, 128, dtype=torch.uint8)
IMAGES[:, 0, :, :64], IMAGES[:, 2, :, 64:] = 200, 200  # red on the left, blue on the right
CAT, DOG = found("cat", 10), found("dog", 90, score=0.6)


@pytest.mark.parametrize(
    ("tag", "include", "exclude", "correct"),
    [
        ("single_object", [{"class": "cat", "count": 1}], [], True),
        ("single_object", [{"class": "cup", "count": 1}], [], False),
        ("two_object", [{"class": "cat", "count": 1}, {"class": "dog", "count": 1}], [], True),
        ("counting", [{"class": "cat", "count": 1}], [{"class": "cat", "count": 2}], True),
        ("counting", [{"class": "dog", "count": 1}], [{"class": "dog", "count": 2}], False),  # 0.6 is too little here
        ("colors", [{"class": "cat", "count": 1, "color": "red"}], [], True),
        ("colors", [{"class": "dog", "count": 1, "color": "red"}], [], False),
        ("color_attr", [{"class": "cat", "count": 1, "color": "red"}, {"class": "dog", "count": 1, "color": "blue"}],
         [], True),
        ("position", [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}],
         [], True),
        ("position", [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}],
         [], False),
    ],
)  # fmt: skip
def test_tasks(tag, include, exclude, correct):
    [result] = geneval([CAT, DOG])(IMAGES, [{"tag": tag, "include": include, "exclude": exclude}])
    assert result["correct"] is correct
    assert bool(result["reasons"]) is not correct
    assert result["objects"]["cat"] == [list(CAT.box)]
    assert ("dog" in result["objects"]) is (tag != "counting")
    assert json.loads(json.dumps(result)) == result


def test_each_image_has_its_own_objects_colors_and_metadata():
    """Objects of one class and box, in pictures of other colours."""
    images = IMAGES.repeat(3, 1, 1, 1)
    images[1] = images[1].flip(2)
    asked = [{"tag": "colors", "include": [{"class": "cat", "count": 1, "color": color}]} for color in ("red", "blue")]
    results = geneval([CAT], [CAT], [])(images, [*asked, asked[0]])
    assert [result["correct"] for result in results] == [True, True, False]
    assert results[2] == {"correct": False, "reasons": ["expected 1 of cat, found 0"], "objects": {}}


def test_the_protocol_names_both_models():
    protocol = geneval().protocol
    assert protocol["metric"] == "geneval-hf"
    assert protocol["threshold"] == 0.3
    assert (protocol["detector"]["metric"], protocol["colors"]["metric"]) == ("mask2former", "geneval_colors")
    assert json.loads(json.dumps(protocol)) == protocol


def test_invalid_arguments_are_named():
    with pytest.raises(ValueError, match="1 images need as many metadata, got 2"):
        geneval([CAT])(IMAGES, [{"tag": "counting"}] * 2)
    with pytest.raises(ValueError, match="tag is 'colour'"):
        geneval([CAT])(IMAGES, [{"tag": "colour"}])
    with pytest.raises(ValueError, match="minimum score is 0.5"):
        geneval(min_score=0.5)
