"""Sample the images of an evaluation suite, score them and explain the scores. A rerun does only what is missing.

SUITE is one of those below; without it, the configuration names the suite.
--latest-registered evaluates the version that `registered` (default: EXPERIMENT@newest) refers to in MLflow's registry.
The exit status is 1 if a score is below `floors` or above `ceilings`, whether it was computed now or earlier.
SUITE --self-test checks the suite's scoring rules on known answers, without configuration, model or Ray.
"""

import sys
from functools import partial
from typing import get_args

from pipelines.core.cli import Job, main
from pipelines.core.job_process import job_process
from pipelines.evaluate.config import EvaluateSettings, SuiteName

LATEST, SELF_TEST, SUITES = "--latest-registered", "--self-test", get_args(SuiteName)


def load(latest: bool) -> Job:
    from pipelines.evaluate.step import STEP, check_thresholds, pin_registered, summarize

    return Job(STEP, prepare=partial(pin_registered, latest=latest), summarize=summarize, conclude=check_thresholds)


@job_process()
def evaluate(arguments: list[str]) -> None:
    suite = [argument for argument in arguments[:1] if argument in SUITES]
    if SELF_TEST in arguments:
        from pipelines.evaluate.known_answers import run_self_test

        sys.exit(run_self_test(suite or SUITES))
    rest = [argument for argument in arguments[len(suite) :] if argument != LATEST]
    rest += [f"suite={name}" for name in suite if rest]
    usage = f"[SUITE] CONFIG.yaml [{LATEST}]"
    main(EvaluateSettings, partial(load, LATEST in arguments), __doc__, arguments=rest, usage=usage)


if __name__ == "__main__":
    evaluate(sys.argv[1:])
