from pathlib import Path

from asymflow.metrics.squeeze_file import FILE, NEEDED


def test_the_file_that_errors_name_is_in_the_repository():
    (named,) = [word for word in NEEDED.split() if word.endswith(FILE)]
    assert (Path(__file__).parents[3] / named).is_file()
