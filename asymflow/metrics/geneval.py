"""GenEval: does a picture hold what its prompt asks for, by the objects that a detector found in it?

A prompt comes with what it asks for (`metadata`): `include`, a list of {class, count, color?, position?}, all of which
must hold, and `exclude`, a list of {class, count}, none of which may. Boxes are (x0, y0, x1, y1, score) in pixels, x to
the right, y downwards; objects are {class: boxes, best first}.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Box = tuple[float, float, float, float, float]
Objects = Mapping[str, Sequence[Box]]

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
MOST = 16
"""Boxes of a class that are looked at"""
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
_TOUCHING = 0.1  # of both sizes: as far as this, centres apart count as one above the other
_NEGLIGIBLE = 1e-3
_DIAGONAL = 0.5


def keep_detections(detections: Sequence[Box], tag: str) -> list[Box]:
    """Those of one class that count, best first: scores above 0.3, above 0.9 where objects are counted; at most 16.

    Boxes of equal scores stay in the order that they came in.
    """
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    ranked = sorted(detections, key=lambda box: -box[4])
    return [box for box in ranked if box[4] > threshold][:MOST]


def judge(
    metadata: Mapping[str, Any], objects: Objects, color_of: Callable[[str, Box], str]
) -> tuple[bool, list[str]]:
    """Whether a picture is what was asked for, and why not. `objects` are what `keep_detections` left of each class;
    `color_of(class, box)` names an object's colour, and is asked only where colours matter.

    Raises:
        ValueError: the metadata ask for a position that is unknown, or relative to something that is not before it.
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
    """What is wrong, empty if nothing is, and the best boxes of the class, as many as were asked for."""
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
    """How a box lies to another: none, one or, on a diagonal, two of RELATIONS."""
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
    return {name for name, held in zip(RELATIONS, holds, strict=True) if held}


def overall(accuracies: Mapping[str, float]) -> float:
    """The mean over the six tasks. Raises ValueError where one has no result, or another is none of them."""
    if accuracies.keys() != set(TASKS):
        raise ValueError(f"results of {sorted(accuracies)}; needed are those of {', '.join(TASKS)}")
    return sum(accuracies.values()) / len(TASKS)
