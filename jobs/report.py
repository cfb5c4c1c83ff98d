"""Compare evaluations on one page: python jobs/report.py OUT.html [LABEL=]SOURCE ... [--tracking-uri URI]

A SOURCE is the URI of an evaluate artifact, or the ID of its MLflow run. The page is a self-contained file. It includes
the paper's Tables 3 and 4, marked as quoted.
"""

import argparse
import os
from pathlib import Path

from pipelines.core.job_process import job_process


@job_process()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python jobs/report.py", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", metavar="OUT.html")
    parser.add_argument("sources", nargs="+", metavar="[LABEL=]SOURCE")
    parser.add_argument("--tracking-uri", default=os.environ.get("MLFLOW_TRACKING_URI", ""), help="MLflow of the runs")
    options = parser.parse_args()
    from pipelines.experiments.report import read_evaluation, render

    page = render([read_evaluation(source, options.tracking_uri) for source in options.sources])
    Path(options.out).write_text(page, "utf-8")
    print(options.out)


if __name__ == "__main__":
    main()
