"""GenEval (Ghosh et al. 2023) on images: detector, colors and rules together."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from asymflow.metrics.colors import ColorClassifier
from asymflow.metrics.geneval import COUNTING_THRESHOLD, MAX_DETECTIONS, TASKS, THRESHOLD, Box, judge
from asymflow.metrics.mask2former import Mask2FormerDetector, objects_by_class


class GenEval:
    """Evaluate images by the requirements of their prompts.

    This is `geneval-hf`: the detector's weights are transformers', not mmdet's, so results are close to the reference's
    but not equal.

    Args:
        detector: Detector of objects.
        colors: Classifier of colors.

    Raises:
        ValueError: If the detector drops objects that count.
    """

    def __init__(self, detector: Mask2FormerDetector, colors: ColorClassifier):
        if detector.min_score > THRESHOLD:
            raise ValueError(
                f"the detector's minimum score is {detector.min_score}; GenEval counts from {THRESHOLD} on"
            )
        self.detector, self.colors = detector, colors
        self.protocol: dict[str, Any] = {
            "metric": "geneval-hf",
            "detector": detector.protocol,
            "colors": colors.protocol,
            "threshold": THRESHOLD,
            "counting_threshold": COUNTING_THRESHOLD,
            "most": MAX_DETECTIONS,
            "nms": None,
        }

    def __call__(self, images: Tensor, metadata: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Evaluate images.

        Args:
            images: sRGB images, uint8 (B, 3, H, W).
            metadata: Requirements of each image's prompt, with its `tag`.

        Returns:
            For each image {correct, reasons, objects: {class: boxes}}.

        Raises:
            ValueError: If shapes or numbers do not fit, or the metadata are invalid.
        """
        if len(metadata) != len(images):
            raise ValueError(f"{len(images)} images need as many metadata, got {len(metadata)}")
        for one in metadata:
            if one.get("tag") not in TASKS:
                raise ValueError(f"tag is {one.get('tag')!r}; known: {', '.join(TASKS)}")
        results = []
        for image, requirements, detections in zip(images, metadata, self.detector(images), strict=True):
            objects = objects_by_class(detections, requirements["tag"])
            masks = {(one.class_name, one.box): one.mask for one in detections}

            def color_of(name: str, box: Box, image: Tensor = image, masks: dict = masks) -> str:
                return self.colors(image, masks[name, box], box, name)

            correct, reasons = judge(requirements, objects, color_of)
            boxes = {name: [list(box) for box in found] for name, found in objects.items()}
            results.append({"correct": correct, "reasons": reasons, "objects": boxes})
        return results
