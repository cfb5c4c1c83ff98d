"""GenEval on pictures: the detector, the colours and the rules together."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from asymflow.metrics.colors import ColorClassifier
from asymflow.metrics.geneval import COUNTING_THRESHOLD, MOST, TASKS, THRESHOLD, Box, judge
from asymflow.metrics.mask2former import Mask2FormerDetector, objects_of


class GenEval:
    """Judges pictures by what their prompts ask for. It is `geneval-hf`: the detector's weights are transformers' and
    not mmdet's, so that numbers are close to the reference's and not the same."""

    def __init__(self, detector: Mask2FormerDetector, colors: ColorClassifier):
        """Raises ValueError for a detector that leaves out objects that count."""
        if detector.least > THRESHOLD:
            raise ValueError(f"the detector's least score is {detector.least}; GenEval counts from {THRESHOLD} on")
        self.detector, self.colors = detector, colors
        self.protocol: dict[str, Any] = {
            "metric": "geneval-hf",
            "detector": detector.protocol,
            "colors": colors.protocol,
            "threshold": THRESHOLD,
            "counting_threshold": COUNTING_THRESHOLD,
            "most": MOST,
            "nms": None,
        }

    def __call__(self, images: Tensor, metadata: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Of uint8 images (B, 3, H, W), sRGB, and what is asked for of each, `tag` among it: {correct, reasons,
        objects: {class: boxes}} each.

        Raises:
            ValueError: shapes or numbers do not fit, or metadata make no sense.
        """
        if len(metadata) != len(images):
            raise ValueError(f"{len(images)} images need as many metadata, got {len(metadata)}")
        for one in metadata:
            if one.get("tag") not in TASKS:
                raise ValueError(f"tag is {one.get('tag')!r}; known: {', '.join(TASKS)}")
        results = []
        for image, asked, detections in zip(images, metadata, self.detector(images), strict=True):
            objects = objects_of(detections, asked["tag"])
            masks = {(one.class_name, one.box): one.mask for one in detections}

            def color_of(name: str, box: Box, image: Tensor = image, masks: dict = masks) -> str:
                return self.colors(image, masks[name, box], box, name)

            correct, reasons = judge(asked, objects, color_of)
            boxes = {name: [list(box) for box in found] for name, found in objects.items()}
            results.append({"correct": correct, "reasons": reasons, "objects": boxes})
        return results
