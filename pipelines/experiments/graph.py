"""The workflow as a graph: its steps, what each takes from earlier ones, and the resources that each declares.

Reading a graph imports neither torch nor Ray.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from pipelines.core.config import StepSettings, validate
from pipelines.core.text_table import format_table
from pipelines.core.workers import peak_demand
from pipelines.experiments.config import SETTINGS, WorkflowSettings

WORKFLOW = ("curate", "caption", "color_stats", "basis", "encode", "finetune", "evaluate")
"""Steps in order. A step takes artifacts of earlier ones only: `basis` encodes its sample itself, without `encode`"""
EVALUATIONS = "evaluations"
_PLACEHOLDER = "not made yet"

Resources = Mapping[str, float]
"""Amounts by Ray's resource names (`CPU`, `GPU`)"""


@dataclass(frozen=True)
class Node:
    """A step of the workflow."""

    name: str
    """Dotted key of its section"""
    step: str
    """Name of the step"""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """{setting: node that makes the artifact}"""
    demand: Resources = field(default_factory=dict)
    """Resources that it uses at most at a time"""

    @property
    def needs(self) -> list[str]:
        """Return the nodes whose artifacts it takes."""
        return list(dict.fromkeys(self.inputs.values()))


def sections_of(settings: WorkflowSettings) -> dict[str, str]:
    """Return {section to run: its step}, in order.

    A finetune with `start_from` has the basis of that adapter, so no basis is made.
    """
    unused = ("color_stats", "basis") if settings.finetune.get("start_from") else ()
    steps = {step: step for step in WORKFLOW if getattr(settings, step) is not None and step not in unused}
    return steps | {f"{EVALUATIONS}.{name}": "evaluate" for name in settings.evaluations}


def inputs_of(name: str, settings: WorkflowSettings) -> dict[str, str]:
    """Return the inputs of a section that the workflow fills in, {setting: section}."""
    sections = sections_of(settings)
    step = sections[name]
    earlier = [made_by for made_by in WORKFLOW[: WORKFLOW.index(step)] if made_by in sections]
    inputs = _model(step).inputs
    return {setting: made_by for setting, made_by in inputs.items() if made_by in earlier}


def fill_section(name: str, settings: WorkflowSettings, made: Mapping[str, str]) -> Any:
    """Return a section's settings, with the artifacts {section: URI} made so far as inputs. Raises ConfigError."""
    model = _model(sections_of(settings)[name])
    inputs = {setting: made[by] for setting, by in inputs_of(name, settings).items() if by in made}
    filled = {"run": settings.run.model_dump(), **inputs}
    if "base" in model.model_fields:
        filled["base"] = settings.base
    _, _, evaluation = name.partition(".")
    own = settings.evaluations[evaluation] if evaluation else getattr(settings, name)
    return validate(model, {**own, **filled}, name)


def _model(step: str) -> type[StepSettings]:
    model = SETTINGS[step]
    assert issubclass(model, StepSettings)
    return model


def fill_all(settings: WorkflowSettings) -> dict[str, Any]:
    """Return every section, validated, with placeholders for its inputs. Raises ConfigError."""
    sections = sections_of(settings)
    return {name: fill_section(name, settings, dict.fromkeys(sections, _PLACEHOLDER)) for name in sections}


def build_graph(settings: WorkflowSettings) -> dict[str, Node]:
    """Return the graph of a workflow, nodes by name, each after those that it needs. Raises ConfigError."""
    sections = sections_of(settings)
    return {
        name: Node(name, sections[name], inputs_of(name, settings), peak_demand(filled))
        for name, filled in fill_all(settings).items()
    }


def format_demand(demand: Resources) -> str:
    """Return resources in words, such as `8 CPU, 8 GPU`."""
    return ", ".join(f"{amount:g} {name}" for name, amount in demand.items())


def format_graph(graph: Mapping[str, Node]) -> str:
    """Return the graph as a table and as a mermaid flowchart."""
    rows = [("step", "needs", "uses at most")]
    rows += [(node.name, ", ".join(node.needs), format_demand(node.demand)) for node in graph.values()]
    return f"{format_table(rows)}\n\n{mermaid(graph)}"


def mermaid(graph: Mapping[str, Node], notes: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return a mermaid flowchart of the graph, without the arrows that follow from others.

    Args:
        graph: The nodes by name.
        notes: Second lines of nodes, by name.
    """
    lines = ["flowchart LR"]
    for node in graph.values():
        note = f"<br/>{notes[node.name]}" if node.name in notes else ""
        lines.append(f'    {_id(node.name)}["{node.name}{note}"]')
    for node in graph.values():
        above = {ancestor for need in node.needs for ancestor in _ancestors(graph, need)}
        lines += [f"    {_id(need)} --> {_id(node.name)}" for need in node.needs if need not in above]
    return "\n".join(lines)


def _ancestors(graph: Mapping[str, Node], name: str) -> set[str]:
    needs = graph[name].needs
    return {*needs, *(ancestor for need in needs for ancestor in _ancestors(graph, need))}


def _id(name: str) -> str:
    return name.replace(".", "_")


def critical_path(graph: Mapping[str, Node], seconds: Mapping[str, float]) -> list[str]:
    """Return the path whose steps take longest together; no schedule is shorter.

    Args:
        graph: The nodes by name, each after those that it needs.
        seconds: Duration of each node.
    """
    paths: dict[str, list[str]] = {}
    for name, node in graph.items():
        before = max((paths[need] for need in node.needs), key=lambda path: _length(path, seconds), default=[])
        paths[name] = [*before, name]
    return max(paths.values(), key=lambda path: _length(path, seconds), default=[])


def _length(path: Sequence[str], seconds: Mapping[str, float]) -> float:
    return sum(seconds[name] for name in path)


def startable(
    waiting: Sequence[str], running: Collection[str], demand: Mapping[str, Resources], capacity: Resources
) -> list[str]:
    """Return the steps to start now: in order, until one does not fit beside those that run.

    A later step never overtakes one that does not fit yet, so that a large one is not delayed by small ones. With
    nothing running, the first step is started whatever it declares: Ray waits for its resources, or adds nodes.

    Args:
        waiting: Steps whose inputs exist, in order.
        running: Steps that run.
        demand: What each declares.
        capacity: Resources of the cluster.
    """
    chosen: list[str] = []
    for name in waiting:
        together = [demand[other] for other in (*running, *chosen)]
        used = {kind: sum(one.get(kind, 0) for one in together) for kind in demand[name]}
        fits = all(used[kind] + amount <= capacity.get(kind, 0) for kind, amount in demand[name].items())
        if together and not fits:
            break
        chosen.append(name)
    return chosen


def simulate(graph: Mapping[str, Node], seconds: Mapping[str, float], capacity: Resources) -> dict[str, float]:
    """Return when each step would start, in seconds, if the cluster had these resources.

    Args:
        graph: The nodes by name.
        seconds: Duration of each node.
        capacity: Resources of the cluster.
    """
    demand = {name: node.demand for name, node in graph.items()}
    now, started, ends = 0.0, {}, {}  # type: float, dict[str, float], dict[str, float]
    done: set[str] = set()
    while len(done) < len(graph):
        waiting = [name for name, node in graph.items() if name not in started and done.issuperset(node.needs)]
        for name in startable(waiting, ends, demand, capacity):
            started[name], ends[name] = now, now + seconds[name]
        now = min(ends.values())
        for name in [name for name, end in ends.items() if end == now]:
            done.add(name)
            del ends[name]
    return started
