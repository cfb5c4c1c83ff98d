"""Draw a suite's pictures, score them, and say what the numbers mean; run again, it does only what is missing.

SUITE is demo, coco10k, hpsv3_benchmark, dpg, geneval or imagenet50k; without it the configuration names one.
--latest-registered evaluates what `registered` (by default EXPERIMENT@newest) points to in MLflow's model registry now.
The exit status is 1 where a score is below `floors` or above `ceilings`, whether it was made now or before.
SUITE --self-test runs known answers through the suite's rules: no configuration, no model, no Ray.
"""

import sys
from functools import partial

from pipelines.core.cli import main
from pipelines.evaluate.self_test import self_test
from pipelines.evaluate.step import STEP, hold_limits, pin_registered, tell
from pipelines.evaluate.suites import SUITES

LATEST, SELF_TEST = "--latest-registered", "--self-test"


def evaluate(arguments: list[str]) -> None:
    suite = [argument for argument in arguments[:1] if argument in SUITES]
    if SELF_TEST in arguments:
        sys.exit(self_test(suite or list(SUITES)))
    latest = LATEST in arguments
    rest = [argument for argument in arguments[len(suite) :] if argument != LATEST]
    main(
        STEP,
        __doc__ or "",
        arguments=[*rest, *(f"suite={name}" for name in suite if rest)],
        usage=f"[SUITE] CONFIG.yaml [{LATEST}]",
        prepare=partial(pin_registered, latest=latest),
        tell=tell,
        conclude=hold_limits,
    )


if __name__ == "__main__":
    evaluate(sys.argv[1:])
