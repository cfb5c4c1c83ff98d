"""UniGenBench++ (Wang et al. 2025, arXiv 2510.18701): test points of a prompt, judged by a vision-language model.

A prompt has test points, such as "Attribute - Color", each with a description. The model replies with a list of scores,
0 or 1 per test point, inside <score>. The part of a test point's name in front of its hyphen is the primary dimension.
"""

import ast
import re
from collections.abc import Mapping, Sequence

FIELDS = ("{prompt}", "{testpoints}", "{definitions}", "{descriptions}")
"""Fields of the template"""
ORIGIN = (
    "system_prompt of eval/qwenvl_72b_en_eval.py in CodeGoat24/UniGenBench (qwenvl_72b_zh_eval.py for Chinese), with "
    "{testpoints} for {testpoint}, {definitions} for {explanation}, and {descriptions} for {test_explanation}"
)


def build_question(
    template: str, prompt: str, points: Sequence[str], descriptions: Sequence[str], definitions: Mapping[str, str]
) -> str:
    """Return the text behind the image.

    Args:
        template: Text with FIELDS, each at least once. Definitions and descriptions are lines "name: text", each after
            a line feed.
        prompt: The prompt.
        points: Names of its test points.
        descriptions: Description of each test point.
        definitions: Definition of each test point, by name.

    Returns:
        The text.

    Raises:
        ValueError: If a test point has no definition.
    """
    if missing := [name for name in points if name not in definitions]:
        raise ValueError(f"the test point {missing[0]!r} has no definition; there are {', '.join(definitions)}")
    values = {
        "{prompt}": prompt,
        "{testpoints}": str(list(points)),
        "{definitions}": "".join(f"\n{name}: {definitions[name]}" for name in points),
        "{descriptions}": "".join(f"\n{name}: {text}" for name, text in zip(points, descriptions, strict=True)),
    }
    return re.sub("|".join(map(re.escape, FIELDS)), lambda found: values[found[0]], template)


def parse_scores(reply: str, count: int) -> list[int] | None:
    """Return the scores in a reply.

    Args:
        reply: The model's reply.
        count: Number of test points.

    Returns:
        1 for each test point that is met, else 0. None if the reply has no list of that length inside <score>; the
        reference samples such replies again, which greedy decoding cannot.
    """
    found = re.search(r"<score>(.*?)</score>", reply, re.DOTALL)
    try:
        scores = ast.literal_eval(found[1].strip()) if found else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(scores, list) or len(scores) != count:
        return None
    return [int(score == 1) for score in scores]


def primary_dimension(point: str) -> str:
    """Return the primary dimension of a test point.

    Args:
        point: Name of the test point.

    Returns:
        The part in front of its first hyphen, or the whole name.
    """
    return point.split("-", 1)[0].strip()
