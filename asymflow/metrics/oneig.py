"""OneIG-Bench (Chang et al. 2025, arXiv 2506.07977): its alignment score, from yes/no questions with dependencies."""

from collections.abc import Mapping, Sequence

TEMPLATE = "{question}. Please answer 'Yes' or 'No' only."
"""Text behind the image"""
YES = "Yes"


def alignment_score(parents: Mapping[str, Sequence[int]], answers: Mapping[str, bool]) -> float:
    """Return the alignment score of an image.

    A question counts 1 if it and all its parents are answered yes. Unlike DPG-Bench's rule, a parent's own parents do
    not matter.

    Args:
        parents: IDs of the parents of each question, 0 for none.
        answers: Whether each question is answered yes.

    Returns:
        The share of questions that count, in [0, 1].

    Raises:
        ValueError: If there are no questions, they differ from those answered, or a parent is unknown.
    """
    if not parents or parents.keys() != answers.keys():
        raise ValueError(f"answers to {', '.join(answers)} do not fit the questions {', '.join(parents) or 'none'}")
    unknown = [str(one) for own in parents.values() for one in own if one and str(one) not in parents]
    if unknown:
        raise ValueError(f"a question depends on {unknown[0]}, which does not exist")
    met = [answers[q] and all(answers[str(one)] for one in own if one) for q, own in parents.items()]
    return sum(met) / len(met)
