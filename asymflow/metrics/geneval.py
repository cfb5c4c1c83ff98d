"""GenEval's rules (Ghosh et al. 2023): whether an image shows what its prompt requires, by the objects detected in it.

A prompt comes with its requirements (`metadata`): `include`, a list of {class, count, color?, position?}, all of which
must hold, and `exclude`, a list of {class, count}, none of which may hold. Boxes are (x0, y0, x1, y1, score) in pixels,
x to the right, y downward; objects are {class: boxes, best first}.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Box = tuple[float, float, float, float, float]
Objects = Mapping[str, Sequence[Box]]

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
MAX_DETECTIONS = 16
"""Largest number of boxes per class"""
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
_TOUCHING = 0.1  # share of both sizes; centers no farther apart than this count as aligned
_NEGLIGIBLE = 1e-3
_DIAGONAL = 0.5


def keep_detections(detections: Sequence[Box], tag: str) -> list[Box]:
    """Return the detections of one class that count, best first; boxes of equal scores keep their order.

    Args:
        detections: Boxes of one class.
        tag: Task of the prompt. For `counting` the threshold of the score is 0.9, else 0.3.

    Returns:
        At most 16 boxes.
    """
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    ranked = sorted(detections, key=lambda box: -box[4])
    return [box for box in ranked if box[4] > threshold][:MAX_DETECTIONS]


def judge(metadata: Mapping[str, Any], objects: Objects, color_of: Callable[[str, Box], str]) -> tuple[bool, list[str]]:
    """Check whether an image meets the requirements of its prompt.

    Args:
        metadata: Requirements of the prompt.
        objects: Boxes of each class that `keep_detections` returned.
        color_of: Returns the color of the object of a class in a box; called only if a color is required.

    Returns:
        (correct, reasons): whether all requirements are met, and one reason for each that is not.

    Raises:
        ValueError: If a required position is unknown, or relative to a requirement that does not come before it.
    """
    reasons: list[str] = []
    groups: list[Sequence[Box] | None] = []  # what was found for each request, None where it does not hold
    for request in metadata.get("include", []):
        problem, found = _include(request, objects, color_of, groups)
        groups.append(None if problem else found)
        reasons += [problem] if problem else []
    for request in metadata.get("exclude", []):
        count = len(objects.get(request["class"], ()))
        if count >= request["count"]:
            reasons.append(f"expected fewer than {request['count']} of {request['class']}, found {count}")
    return not reasons, reasons


def _include(
    request: Mapping[str, Any],
    objects: Objects,
    color_of: Callable[[str, Box], str],
    groups: Sequence[Sequence[Box] | None],
) -> tuple[str, Sequence[Box]]:
    """Return why a requirement is not met, or "", and the best boxes of the class, up to the required count."""
    name, count = request["class"], request["count"]
    found = objects.get(name, ())[:count]
    if len(found) < count:
        return f"expected {count} of {name}, found {len(found)}", found
    if "color" in request:
        colors = [color_of(name, box) for box in found]
        if colors.count(request["color"]) < count:
            return f"expected {count} {request['color']} of {name}, found {', '.join(colors)}", found
    if "position" in request:
        relation, place = request["position"]
        if relation not in RELATIONS:
            raise ValueError(f"position is {relation!r}; known: {', '.join(RELATIONS)}")
        if not 0 <= place < len(groups):
            raise ValueError(f"{name} is to be {relation} request {place}, which is not before it")
        targets = groups[place]
        if targets is None:
            return f"nothing for {name} to be {relation}", found
        if not all(relation in relations(box, target) for box in found for target in targets):
            return f"expected {name} {relation} the other", found
    return "", found


RELATIONS = ("left of", "right of", "above", "below")


def relations(box: Box, other: Box) -> set[str]:
    """Return the position of a box relative to another.

    Args:
        box: The box.
        other: The other box.

    Returns:
        None, one or, on a diagonal, two of RELATIONS.
    """
    offsets, apart = [], []
    for axis in (0, 1):
        offset = (box[axis] + box[axis + 2]) / 2 - (other[axis] + other[axis + 2]) / 2
        sizes = (box[axis + 2] - box[axis]) + (other[axis + 2] - other[axis])
        offsets.append(offset)
        apart.append(max(abs(offset) - _TOUCHING * sizes, 0.0) * (1 if offset > 0 else -1))
    if all(abs(value) < _NEGLIGIBLE for value in apart):
        return set()
    length = (offsets[0] ** 2 + offsets[1] ** 2) ** 0.5
    dx, dy = apart[0] / length, apart[1] / length
    holds = (dx < -_DIAGONAL, dx > _DIAGONAL, dy < -_DIAGONAL, dy > _DIAGONAL)
    return {name for name, is_met in zip(RELATIONS, holds, strict=True) if is_met}


def overall(accuracies: Mapping[str, float]) -> float:
    """Return the benchmark's score: the mean over the six tasks.

    Args:
        accuracies: Accuracy by task.

    Returns:
        The score, in the unit of the accuracies.

    Raises:
        ValueError: Unless there is exactly one result per task.
    """
    if accuracies.keys() != set(TASKS):
        raise ValueError(f"results of {sorted(accuracies)}; expected one of each of {', '.join(TASKS)}")
    return sum(accuracies.values()) / len(TASKS)
