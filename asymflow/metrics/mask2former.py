"""GenEval's detector: Mask2Former (Cheng et al. 2022), trained on COCO's instances, in transformers.

The reference runs mmdet's Mask2Former, which has other weights. The model's output is processed as in mmdet, not as by
transformers' `post_process_instance_segmentation`, which resizes masks to 384x384.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from asymflow.metrics.arguments import check_images
from asymflow.metrics.geneval import THRESHOLD, Box, Objects, keep_detections
from asymflow.metrics.weights import MissingWeights, find

MODEL = "facebook/mask2former-swin-small-coco-instance"
MAX_DETECTIONS = 100
"""Largest number of detections per image, before any threshold"""

# COCO's 80, by index, in GenEval's words: "mouse", "remote" and "keyboard" say whose they are.
CLASSES = tuple(
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,computer mouse,tv remote,computer keyboard,cell phone,microwave,"
    "oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush".split(",")
)
Size = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Detection:
    """One object in an image."""

    class_index: int
    """Index in CLASSES"""
    class_name: str
    """Name in CLASSES"""
    box: Box
    """(x0, y0, x1, y1, score), in pixels; x1 and y1 are exclusive"""
    mask: Tensor
    """(H, W), bool, on the CPU"""


def find_detections(
    class_logits: Tensor,
    mask_logits: Tensor,
    padded_size: Size,
    valid_size: Size,
    image_size: Size,
    min_score: float = 0.0,
) -> list[Detection]:
    """Return the detections of one image, best first. A mask without pixels, which mmdet scores 0, is not a detection.

    Args:
        class_logits: Logits of the classes (Q, 81), the last for none.
        mask_logits: Logits of the masks (Q, h, w).
        padded_size: Height and width of the model's input with its padding.
        valid_size: Height and width of the model's input without padding.
        image_size: Height and width of the image.
        min_score: Only detections with a score above it are returned.

    Returns:
        The detections.

    Raises:
        ValueError: If shapes do not fit, or logits are NaN.
    """
    if class_logits.ndim != 2 or class_logits.shape[1] != len(CLASSES) + 1 or len(mask_logits) != len(class_logits):
        raise ValueError(
            f"logits of classes are {tuple(class_logits.shape)}, of masks {tuple(mask_logits.shape)}; expected "
            f"(Q, {len(CLASSES) + 1}) and (Q, h, w)"
        )
    if class_logits.isnan().any() or mask_logits.isnan().any():
        raise ValueError("the detector's logits hold NaN")
    scores = class_logits.float().softmax(-1)[:, :-1].flatten()
    scores, indices = scores.topk(min(MAX_DETECTIONS, len(scores)))
    # No score is above its class's: what that alone rules out needs no mask.
    indices, scores = indices[scores > min_score], scores[scores > min_score]
    if not len(indices):
        return []
    queries, which = (indices // len(CLASSES)).unique(return_inverse=True)
    logits = _resize(mask_logits[queries].float(), padded_size)[:, : valid_size[0], : valid_size[1]]
    logits = _resize(logits, image_size)
    masks = logits > 0
    pixels = masks.flatten(1).sum(1)
    # mmdet adds 1e-6 to the number of pixels, so that none divide by none; that is beyond float32 from 9 pixels on.
    inside = (logits.sigmoid() * masks).flatten(1).sum(1) / pixels.clamp_min(1)
    scores = scores * inside[which]
    boxes = [_box(mask) if count else None for mask, count in zip(masks, pixels.tolist(), strict=True)]
    masks = masks.cpu()
    found = []
    for index, query, score in zip(indices.tolist(), which.tolist(), scores.tolist(), strict=True):
        corners = boxes[query]
        if corners is not None and score > min_score:
            class_index = index % len(CLASSES)
            found.append(Detection(class_index, CLASSES[class_index], (*corners, score), masks[query]))
    return sorted(found, key=lambda one: -one.box[4])


def _size(maps: Tensor) -> Size:
    return maps.shape[-2], maps.shape[-1]


def _resize(maps: Tensor, size: Size) -> Tensor:
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def _box(mask: Tensor) -> tuple[float, float, float, float]:
    columns, rows = mask.any(0).nonzero(), mask.any(1).nonzero()
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def objects_by_class(detections: Sequence[Detection], tag: str) -> Objects:
    """Return the boxes that count of each class, for `geneval.judge`.

    Args:
        detections: Detections of one image.
        tag: Task of the prompt.

    Returns:
        Boxes by class, best first.
    """
    boxes: dict[str, list[Box]] = {}
    for one in detections:
        boxes.setdefault(one.class_name, []).append(one.box)
    kept = {name: keep_detections(found, tag) for name, found in boxes.items()}
    return {name: found for name, found in kept.items() if found}


class Mask2FormerDetector:
    """Detect COCO's objects in images, in float32.

    The processor resizes an image with its aspect ratio, and zeros are added at the right and bottom after
    normalization, as in mmdet, up to a multiple of the backbone's stride. (The processor alone would stretch the
    image.)

    Args:
        model: The model, of COCO's 80 classes.
        processor: Its image processor.
        identity: Name of the weights in the protocol.
        min_score: Only detections with a score above it are returned; by default the lowest threshold of GenEval.

    Raises:
        ValueError: If the model has other than 80 classes.
    """

    def __init__(self, model: Any, processor: Any, identity: str, min_score: float = THRESHOLD):
        if model.config.num_labels != len(CLASSES):
            raise ValueError(f"{identity} has {model.config.num_labels} classes; expected COCO's {len(CLASSES)}")
        self.model, self.processor, self.min_score = model.eval(), processor, min_score
        size = {edge: side for edge, side in dict(processor.size).items() if side is not None}
        self.protocol: dict[str, Any] = {
            "metric": "mask2former",
            "model": identity,
            "precision": str(model.dtype).removeprefix("torch."),
            "resize": f"{type(processor).__name__}, {size}, {processor.resample!s}",
            "padding": f"to multiples of {processor.size_divisor}",
            "masks": "to the padded input, cropped, bilinear to the picture; > 0",
            "score": "class probability x mean sigmoid in the mask, more than",
            "least": min_score,
            "most": MAX_DETECTIONS,
        }

    @classmethod
    def load(
        cls, source: str = MODEL, revision: str = "main", device: str = "cpu", min_score: float = THRESHOLD
    ) -> "Mask2FormerDetector":
        """Load the model from a folder or repository of safetensors.

        Args:
            source: Folder or repository.
            revision: Revision of the repository.
            device: Device of the model.
            min_score: Only detections with a score above it are returned.

        Returns:
            The detector.

        Raises:
            MissingWeights: If the model is missing.
            ValueError: If the model has other than 80 classes.
        """
        found = find(source, f"{MODEL}, or another Mask2Former for COCO's instances", revision=revision)
        from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

        try:
            model = Mask2FormerForUniversalSegmentation.from_pretrained(
                found.path, dtype=torch.float32, local_files_only=True, use_safetensors=True
            )
            processor = Mask2FormerImageProcessor.from_pretrained(found.path, local_files_only=True)
        except OSError as error:
            raise MissingWeights(f"{source}: {error}") from error
        return cls(model.to(device), processor, found.identity, min_score)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> list[list[Detection]]:
        """Detect the objects in images.

        Args:
            images: sRGB images, uint8 (B, 3, H, W).

        Returns:
            Detections of each image, best first.

        Raises:
            ValueError: For other images.
        """
        check_images(images)
        if not len(images):
            return []
        pixels = self.processor(
            images=list(images), size_divisor=0, input_data_format="channels_first", return_tensors="pt"
        )["pixel_values"].to(self.model.device)
        valid, divisor = _size(pixels), self.processor.size_divisor
        pixels = F.pad(pixels, (0, -valid[1] % divisor, 0, -valid[0] % divisor))
        outputs = self.model(pixel_values=pixels)
        sizes = _size(pixels), valid, _size(images)
        logits = zip(outputs.class_queries_logits, outputs.masks_queries_logits, strict=True)
        return [find_detections(classes, masks, *sizes, min_score=self.min_score) for classes, masks in logits]
