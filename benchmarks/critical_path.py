"""Time of a workflow: one step after the other, and as a graph on clusters of several sizes.

    python benchmarks/critical_path.py [demo | klein_9b | FOLDER]

`demo` takes the durations that docs/reproduction.md reports, measured on two cores. `klein_9b` models them for the
resources that the configuration declares, with two more suites: data steps by the rates of benchmarks/scale_model.py,
the finetune by its plan, evaluations by the operations of sampling. FOLDER is a finished workflow's (`.workflows/ID` in
its storage), with its own times.
No step is run; the schedule is that of the workflow, simulated.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from scale_model import STEPS  # noqa: E402

from pipelines.core.config import load_config  # noqa: E402
from pipelines.core.text_table import format_table  # noqa: E402
from pipelines.experiments.config import WorkflowSettings  # noqa: E402
from pipelines.experiments.graph import Node, build_graph, critical_path, fill_all, format_demand, simulate  # noqa: E402
from pipelines.experiments.timeline import read_timeline  # noqa: E402
from pipelines.train.finetune.plan import UTILIZATION, plan  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
DEMO = {"curate": 16.0, "color_stats": 5.0, "basis": 16.0, "encode": 26.0, "finetune": 329.0, "evaluate": 116.0}
"""Seconds on two idle cores, one run: docs/reproduction.md"""
IMAGES, SAMPLING_STEPS = 3e6, 32
SAMPLES = {"evaluate": 10_000 * 3, "evaluations.dpg": 1065 * 4, "evaluations.geneval": 553 * 4}
"""Images that each evaluation samples: 10,000 prompts for three models; the others for the trained model"""
CLUSTERS: dict[str, list[dict[str, float]]] = {
    "demo": [{"CPU": 2}, {"CPU": 4}, {"CPU": 8}],
    "klein_9b": [{"CPU": 512, "GPU": 9}, {"CPU": 512, "GPU": 16}, {"CPU": 512, "GPU": 32}],
}


def graph_of(name: str) -> tuple[WorkflowSettings, dict[str, Node]]:
    """Return the settings and the graph of a shipped workflow; the 9B one with two more suites."""
    more = [
        f"evaluations.{suite}={{suite: {suite}, models: [trained], resources: {{workers: 8, gpus_per_worker: 1}}}}"
        for suite in ("dpg", "geneval")
    ]
    file = str(ROOT / f"jobs/configs/workflow/{name}.yaml")
    settings = load_config(WorkflowSettings, file, more if name == "klein_9b" else [])
    return settings, build_graph(settings)


def modelled_seconds(settings: WorkflowSettings, graph: Mapping[str, Node]) -> dict[str, float]:
    """Return the seconds of each step of the 9B workflow on the resources that it declares."""
    rates = {work.name: work for work in STEPS}
    planned = plan(fill_all(settings)["finetune"])
    assert planned.seconds_per_step is not None
    assert planned.device.tflops is not None
    forward = planned.flops.student.forward * 2  # conditional and unconditional
    seconds_per_sample = SAMPLING_STEPS * forward / (1e12 * planned.device.tflops * UTILIZATION)
    found = {name: count * seconds_per_sample / graph[name].demand["GPU"] for name, count in SAMPLES.items()}
    found["finetune"] = planned.seconds_per_step * settings.finetune["optim"]["steps"]
    for name in graph.keys() - found.keys():
        work = rates[name]
        workers = graph[name].demand["GPU" if work.uses_gpu else "CPU"]
        found[name] = min(IMAGES, work.most_items) * work.seconds_per_item / workers
    return {name: found[name] for name in graph}


def rows_of(
    graph: Mapping[str, Node], seconds: Mapping[str, float], clusters: list[dict[str, float]]
) -> list[tuple[str, str]]:
    """Return the table of a workflow's times."""
    path = critical_path(graph, seconds)
    rows = [("", "seconds"), *((f"  {name}", f"{seconds[name]:,.0f}") for name in graph)]
    rows.append(("one step after the other", f"{sum(seconds.values()):,.0f}"))
    for cluster in clusters:
        starts = simulate(graph, seconds, cluster)
        ended = max(starts[name] + seconds[name] for name in graph)
        rows.append((f"as a graph, on {format_demand(cluster)}", f"{ended:,.0f}"))
    rows.append((f"critical path: {', '.join(path)}", f"{sum(seconds[name] for name in path):,.0f}"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workflow", nargs="?", default="demo")
    name = parser.parse_args().workflow
    if name in CLUSTERS:
        settings, graph = graph_of(name)
        seconds = DEMO if name == "demo" else modelled_seconds(settings, graph)
        print(format_table(rows_of(graph, seconds, CLUSTERS[name])))
        return
    timeline = read_timeline(name)
    if not timeline:
        parser.error(f"{name!r}: neither one of {', '.join(CLUSTERS)} nor a folder with steps.json")
    graph = {entry.name: Node(entry.name, entry.name, {need: need for need in entry.needs}) for entry in timeline}
    print(format_table(rows_of(graph, {entry.name: entry.seconds for entry in timeline}, [])))


if __name__ == "__main__":
    main()
