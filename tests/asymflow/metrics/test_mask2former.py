import json
import math

import pytest
import torch
import torch.nn.functional as F
from tiny_detector import write_detector

from asymflow.metrics.geneval import TASKS
from asymflow.metrics.mask2former import (
    CLASSES,
    Detection,
    Mask2FormerDetector,
    find_detections,
    objects_by_class,
)  # fmt: skip
from asymflow.metrics.weights import MissingWeights

CAT, DOG = CLASSES.index("cat"), CLASSES.index("dog")


def classes(*queries):
    """Logits (Q, 81) with these probabilities {class: p}; what remains is for none."""
    odds = torch.full((len(queries), 81), 1e-12)
    for row, wanted in zip(odds, queries, strict=True):
        for index, probability in wanted.items():
            row[index] = probability
        row[80] = 1 - sum(wanted.values())
    return odds.log() + 3  # a constant changes nothing


def masks(*fields, height=8, width=12, inside=2.0, outside=-5.0):
    """Logits (Q, height, width), `inside` in the field (x0, y0, x1, y1) of each."""
    logits = torch.full((len(fields), height, width), outside)
    for one, (x0, y0, x1, y1) in zip(logits, fields, strict=True):
        one[y0:y1, x0:x1] = inside
    return logits


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_the_classes_are_cocos_with_three_names_of_genevals():
    assert len(CLASSES) == len(set(CLASSES)) == 80
    assert [CLASSES.index(name) for name in ("person", "cat", "computer mouse", "tv remote", "computer keyboard")] == [
        0, 15, 64, 65, 66,
    ]  # fmt: skip
    assert CLASSES[79] == "toothbrush"
    assert CLASSES[42] == "fork"
    assert not {"mouse", "remote", "keyboard"} & set(CLASSES)


def test_scores_and_boxes():
    logits = masks((2, 1, 5, 4), (0, 0, 12, 8))
    found = find_detections(
        classes({CAT: 0.7, DOG: 0.2}, {DOG: 0.9}), logits, (8, 12), (8, 12), (8, 12), min_score=0.05
    )
    assert [(one.class_index, one.class_name) for one in found] == [(DOG, "dog"), (CAT, "cat"), (DOG, "dog")]
    assert [one.box[:4] for one in found] == [(0, 0, 12, 8), (2, 1, 5, 4), (2, 1, 5, 4)]
    assert [one.box[4] for one in found] == pytest.approx([p * sigmoid(2) for p in (0.9, 0.7, 0.2)], abs=1e-6)
    assert torch.equal(found[1].mask, logits[0] > 0)
    assert found[1].mask.dtype == torch.bool


def test_the_mean_is_over_the_mask_alone():
    logits = masks((0, 0, 2, 1))
    logits[0, 0, 1] = 0.5
    [found] = find_detections(classes({CAT: 0.8}), logits, (8, 12), (8, 12), (8, 12), min_score=0.1)
    assert found.box[4] == pytest.approx(0.8 * (sigmoid(2) + sigmoid(0.5)) / 2, abs=1e-6)
    logits[0, 0, 1] = 0.0  # not more than 0: outside
    [found] = find_detections(classes({CAT: 0.8}), logits, (8, 12), (8, 12), (8, 12), min_score=0.1)
    assert found.box == pytest.approx((0, 0, 1, 1, 0.8 * sigmoid(2)), abs=1e-6)


def test_empty_masks_are_not_detections():
    logits = masks((0, 0, 0, 0), (1, 1, 2, 2))
    found = find_detections(classes({CAT: 0.9}, {DOG: 0.9}), logits, (8, 12), (8, 12), (8, 12), min_score=0.01)
    assert [one.class_name for one in found] == ["dog"]


def test_at_most_a_hundred_of_all_queries_and_classes():
    odds = torch.linspace(1.0, 2.0, 160).view(2, 80)
    rows = [{i: float(p) / 400 for i, p in enumerate(row)} for row in odds]
    found = find_detections(classes(*rows), masks((0, 0, 1, 1), (3, 3, 4, 4)), (8, 12), (8, 12), (8, 12))
    assert len(found) == 100
    assert [one.class_index for one in found] == [*range(79, -1, -1), *range(79, 59, -1)]
    assert {one.box[0] for one in found[:80]} == {3.0}
    assert {one.box[0] for one in found[80:]} == {0.0}


def test_masks_follow_the_padded_input_then_the_image():
    """Logits 0 at the middle of a padded input of 32x64, of which 32x48 are a picture of 64x96: zero at x = 64."""
    x = torch.arange(16.0) + 0.5
    ramp = (x - 8).expand(1, 8, 16)
    [found] = find_detections(classes({CAT: 0.9}), ramp, (32, 64), (32, 48), (64, 96), min_score=0.1)
    assert found.box[:4] == (64, 0, 96, 64)
    assert found.mask.shape == (64, 96)
    assert found.mask.sum() == 64 * 32
    down = ramp.transpose(1, 2)
    [found] = find_detections(classes({CAT: 0.9}), -down, (64, 32), (48, 32), (96, 64), min_score=0.1)
    assert found.box[:4] == (0, 0, 64, 64)


def test_a_mask_in_the_padding_is_none():
    logits = masks((10, 0, 12, 8))
    assert len(find_detections(classes({CAT: 0.9}), logits, (32, 48), (32, 48), (32, 48), min_score=0.1)) == 1
    assert find_detections(classes({CAT: 0.9}), logits, (32, 48), (32, 36), (32, 36), min_score=0.1) == []


def key(one):
    return one.class_index, one.box, one.mask.sum().item()


def test_the_least_score_is_a_filter_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 81, generator=generator) * 4
    fields = torch.randn(20, 4, 6, generator=generator)
    everything = find_detections(logits, fields, (16, 24), (16, 20), (30, 40))
    assert len(everything) == 100
    assert [one.box[4] for one in everything] == sorted((one.box[4] for one in everything), reverse=True)
    for min_score in (0.1, 0.3, 0.5, 1.0):
        kept = find_detections(logits, fields, (16, 24), (16, 20), (30, 40), min_score=min_score)
        assert [key(one) for one in kept] == [key(one) for one in everything if one.box[4] > min_score]


@pytest.mark.parametrize(
    ("logits", "fields", "named"),
    [
        (torch.zeros(2, 80), torch.zeros(2, 4, 4), "expected .Q, 81"),
        (torch.zeros(2, 81), torch.zeros(3, 4, 4), "expected .Q, 81"),
        (torch.full((2, 81), math.nan), torch.zeros(2, 4, 4), "NaN"),
        (torch.zeros(2, 81), torch.full((2, 4, 4), math.nan), "NaN"),
    ],
)
def test_invalid_logits_are_refused(logits, fields, named):
    with pytest.raises(ValueError, match=named):
        find_detections(logits, fields, (4, 4), (4, 4), (4, 4))


@pytest.mark.parametrize("tag", TASKS)
def test_objects_of_a_task(tag):
    def one(name, score):
        return Detection(CLASSES.index(name), name, (0.0, 0.0, 9.0, 9.0, score), torch.ones(9, 9, dtype=torch.bool))

    found = [one("cat", 0.4), one("dog", 0.95), one("cat", 0.92), one("cup", 0.2)]
    scores = {name: [box[4] for box in boxes] for name, boxes in objects_by_class(found, tag).items()}
    assert scores == {"cat": [0.92] if tag == "counting" else [0.92, 0.4], "dog": [0.95]}
    assert objects_by_class([], tag) == {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_detector(tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="module")
def detector(folder):
    return Mask2FormerDetector.load(folder, min_score=0.02)


def pictures(count, height=40, width=60):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def test_an_image_is_resized_in_proportion_and_padded(detector):
    """A picture of 40x60 becomes 48x72, and is padded to 64x96; expected values are computed step by step."""
    seen, model = [], detector.model
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    [found] = detector(pictures(1))
    hook.remove()
    [pixels] = seen
    assert pixels.shape == (1, 3, 64, 96)
    assert not pixels[..., 48:, :].any()
    assert not pixels[..., 72:].any()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    resized = F.interpolate(pictures(1).float(), size=(48, 72), mode="bilinear", antialias=True)
    expected = (resized / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert (pixels[..., :48, :72] - expected).abs().max() < 0.018  # one of 256 levels: the processor rounds
    with torch.no_grad():
        outputs = model(pixel_values=pixels)
    odds = outputs.class_queries_logits[0].softmax(-1)
    fields = F.interpolate(outputs.masks_queries_logits, size=(64, 96), mode="bilinear")[..., :48, :72]
    fields = F.interpolate(fields, size=(40, 60), mode="bilinear")[0]
    scores = {}
    for query in range(10):
        field = fields[query][fields[query] > 0]
        for index in range(80):
            if len(field):
                scores[query, index] = float(odds[query, index] * field.sigmoid().mean())
    best = sorted((score for score in scores.values() if score > 0.02), reverse=True)
    assert len(best) > 5
    assert [one.box[4] for one in found] == pytest.approx(best, abs=1e-6)
    (query, index), score = max(scores.items(), key=lambda item: item[1])
    assert found[0].class_index == index
    assert torch.equal(found[0].mask, fields[query] > 0)
    rows, columns = torch.where(fields[query] > 0)
    assert found[0].box[:4] == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_detections_do_not_depend_on_the_batch(detector):
    images = pictures(3)
    together = detector(images)
    assert len({tuple(one.class_index for one in found) for found in together}) > 1
    for image, found in zip(images, together, strict=True):
        [alone] = detector(image[None])
        assert [one.class_index for one in alone] == [one.class_index for one in found]
        assert [one.box[4] for one in alone] == pytest.approx([one.box[4] for one in found], abs=1e-5)
        assert all((one.mask != other.mask).float().mean() < 1e-3 for one, other in zip(alone, found, strict=True))
    assert detector(images[:0]) == []


def test_protocol_has_every_setting_that_changes_detections(detector, folder):
    protocol = detector.protocol
    assert json.loads(json.dumps(protocol)) == protocol
    assert protocol["model"].startswith("local:")
    assert protocol["precision"] == "float32"
    assert protocol["padding"] == "to multiples of 32"
    assert "'shortest_edge': 48" in protocol["resize"]
    assert Mask2FormerDetector.load(folder).protocol == {**protocol, "least": 0.3}


def test_other_models_than_detectors_are_refused(detector, tmp_path):
    with pytest.raises(ValueError, match="expected uint8"):
        detector(pictures(2).float())
    with pytest.raises(ValueError, match="expected uint8"):
        detector(pictures(2)[0])
    with pytest.raises(MissingWeights, match="needed is facebook/mask2former"):
        Mask2FormerDetector.load("")
    with pytest.raises(ValueError, match="has 7 classes"):
        Mask2FormerDetector.load(write_detector(tmp_path / "seven", labels=7))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(MissingWeights, match="nothing"):
        Mask2FormerDetector.load(str(tmp_path / "nothing"))
