"""GenEval 2 (Kamath et al. 2025, arXiv 2512.16853): Soft-TIFA scores from the probabilities of answers.

A prompt has questions with expected answers, one per atom (and per indefinite article). The score of a question is the
probability that the judge's reply begins with the expected answer, in any of its spellings.
"""

import math
from collections.abc import Sequence

TEMPLATE = "{question} Answer in one word."
"""Text behind the image"""
COUNTING = "How many"
"""Beginning of the questions whose expected answer is a number; all others expect yes"""
NUMERALS = {
    "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8",
    "nine": "9", "ten": "10",
}  # fmt: skip
YES = ("Yes", "yes", " yes", " Yes")
OTHER = "other"
"""Numeral of a number word that is not in NUMERALS, as in the reference"""


def accepted_answers(question: str, expected: str) -> list[str]:
    """Return the spellings whose first tokens count as the expected answer.

    Args:
        question: The question.
        expected: The expected answer: a number word for questions that start with "How many". It is not used for
            others, as in the reference.

    Returns:
        The spellings; with a leading space too, because tokenizers have other tokens for these.
    """
    if not question.startswith(COUNTING):
        return list(YES)
    words = [expected, expected.capitalize(), NUMERALS.get(expected, OTHER)]
    return [*words, *(f" {word}" for word in words)]


def soft_tifa_am(probabilities: Sequence[float]) -> float:
    """Return Soft-TIFA AM of an image: the arithmetic mean over its questions.

    Args:
        probabilities: Probability of the expected answer to each question.

    Returns:
        The mean.

    Raises:
        ValueError: If there are no probabilities.
    """
    if not probabilities:
        raise ValueError("there are no questions")
    return math.fsum(probabilities) / len(probabilities)


def soft_tifa_gm(probabilities: Sequence[float]) -> float:
    """Return Soft-TIFA GM of an image: the geometric mean over its questions, 0 if one probability is 0.

    Args:
        probabilities: Probability of the expected answer to each question.

    Returns:
        The mean.

    Raises:
        ValueError: If there are no probabilities, or one is negative.
    """
    if not probabilities or min(probabilities) < 0:
        raise ValueError(f"the probabilities {list(probabilities)} have no geometric mean")
    if min(probabilities) == 0:
        return 0.0
    return math.exp(math.fsum(map(math.log, probabilities)) / len(probabilities))


def tifa(words: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """Return TIFA of an image: the share of questions whose most probable first token is an accepted answer.

    Args:
        words: Most probable first token of the reply to each question.
        answers: Accepted answers to each question.

    Returns:
        The share.

    Raises:
        ValueError: If there are no questions, or not as many words.
    """
    if not words or len(words) != len(answers):
        raise ValueError(f"{len(answers)} questions need as many words, at least one; got {len(words)}")
    return sum(word.lower() in accepted for word, accepted in zip(words, answers, strict=True)) / len(words)
