"""Run the steps of the whole pipeline, reusing artifacts that are up to date, under one MLflow run.

Independent steps run at the same time, as far as the cluster has the resources that they declare. --graph prints the
steps, their inputs and resources, as a table and as a mermaid flowchart.
"""

import sys

from pipelines.core.cli import print_plan, print_result, read_settings
from pipelines.core.job_process import job_process
from pipelines.experiments.config import WorkflowSettings
from pipelines.experiments.graph import build_graph, format_graph

GRAPH = "--graph"
NOTE = "A section's settings: python jobs/SECTION.py --help"


def main() -> None:
    with job_process():
        arguments = [argument for argument in sys.argv[1:] if argument != GRAPH]
        settings, dry = read_settings(WorkflowSettings, __doc__, arguments, f"CONFIG.yaml [{GRAPH}]", NOTE)
        graph = build_graph(settings)
        if GRAPH in sys.argv:
            print(format_graph(graph), end="\n\n")
            return print_plan(settings, lambda settings: {"steps": len(graph)})
        if dry:
            return print_plan(settings)
        from pipelines.core.tracking import describe_ui
        from pipelines.experiments.workflow import run_workflow, table

        run_id, outcomes = run_workflow(settings)
        last = outcomes["evaluate"].artifact
        print(f"\n{table(outcomes)}\n\nimages:    {last.file('samples.png')}")
        print(f"MLflow UI: {describe_ui(settings.run)}\n")
        print_result({"artifact": last.uri, "mlflow_run": run_id, "metrics": last.manifest["metrics"]})


if __name__ == "__main__":
    main()
