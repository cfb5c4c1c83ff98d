import json
import runpy
import sys
from pathlib import Path

import pytest

from pipelines.core.config import ConfigError, validate
from pipelines.experiments.config import SETTINGS, WorkflowSettings
from pipelines.experiments.graph import (
    WORKFLOW,
    Node,
    build_graph,
    critical_path,
    fill_all,
    fill_section,
    format_graph,
    mermaid,
    sections_of,
    simulate,
    startable,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture
def workflow(tmp_path):
    return validate(WorkflowSettings, {"base": "/nowhere/klein", "curate": {"source": "data"}, "name": "mine"})


def test_sections_that_are_null_are_left_out(workflow):
    assert list(sections_of(workflow)) == [step for step in WORKFLOW if step != "caption"]
    with_captions = workflow.model_copy(update={"caption": {"model": "m"}, "color_stats": None})
    assert list(sections_of(with_captions)) == [step for step in WORKFLOW if step != "color_stats"]
    assert set(WORKFLOW) < set(SETTINGS)


def test_a_section_gets_the_run_the_base_and_what_was_made(workflow):
    made = {"curate": "c", "color_stats": "s", "encode": "e", "basis": "b"}
    finetune = fill_section("finetune", workflow, made)
    assert (finetune.curated, finetune.encoded, finetune.basis, finetune.base) == ("c", "e", "b", "/nowhere/klein")
    assert finetune.run == workflow.run


def test_a_mistake_in_a_section_is_named_with_it(workflow):
    wrong = workflow.model_copy(update={"encode": {"text": "maybe"}})
    with pytest.raises(ConfigError, match="encode.text='maybe': input should be 'stored' or 'on_the_fly'"):
        fill_all(wrong)
    assert list(fill_all(workflow)) == list(sections_of(workflow))


def test_the_inputs_are_the_edges(workflow):
    full = workflow.model_copy(update={"caption": {"model": "m"}, "evaluations": {"dpg": {"suite": "dpg"}}})
    needs = {name: node.needs for name, node in build_graph(full).items()}
    assert needs == {
        "curate": [],
        "caption": ["curate"],
        "color_stats": ["curate"],
        "basis": ["curate", "color_stats"],  # it encodes its own sample, so that it does not wait for `encode`
        "encode": ["curate", "caption"],
        "finetune": ["curate", "encode", "basis"],
        "evaluate": ["curate", "basis", "finetune"],
        "evaluations.dpg": ["curate", "basis", "finetune"],
    }


def test_further_evaluations_have_settings_of_their_own(workflow):
    more = workflow.model_copy(update={"evaluations": {"dpg": {"suite": "dpg", "shown": 3}}})
    filled = fill_section("evaluations.dpg", more, {"finetune": "f", "basis": "b", "curate": "c"})
    assert (filled.suite, filled.shown, filled.finetuned, filled.base) == ("dpg", 3, "f", "/nowhere/klein")
    wrong = workflow.model_copy(update={"evaluations": {"dpg": {"suite": "pdg"}}})
    with pytest.raises(ConfigError, match=r"evaluations\.dpg\.suite='pdg': input should be"):
        fill_all(wrong)


def test_a_finetune_that_starts_from_an_adapter_has_its_basis(workflow):
    continued = workflow.model_copy(update={"finetune": {"start_from": "some/adapter"}})
    graph = build_graph(continued)
    assert list(graph) == ["curate", "encode", "finetune", "evaluate"]
    assert graph["finetune"].needs == ["curate", "encode"]
    assert graph["evaluate"].needs == ["curate", "finetune"]
    finetune = fill_section("finetune", continued, {"curate": "c", "encode": "e", "basis": "of an earlier run"})
    assert finetune.basis == ""
    assert finetune.encoded == "e"


def test_the_demand_is_what_the_sections_declare(workflow):
    settings = workflow.model_copy(
        update={
            "encode": {"resources": {"latents": {"workers": 3, "gpus_per_worker": 0.5}, "text": {"workers": 4}}},
            "finetune": {"resources": {"workers": 8, "use_gpu": True, "cpus_per_worker": 2, "zero_stage": 0,
                                       "text_encoders": {"workers": 2, "gpus_per_worker": 1}}},
            "evaluate": {"resources": {"workers": 5}, "scorers": {"spectrum": {"resources": {"gpus_per_worker": 1}}}},
        }
    )  # fmt: skip
    demand = {name: node.demand for name, node in build_graph(settings).items()}
    assert demand["encode"] == {"CPU": 4, "GPU": 1.5}  # one pool after the other
    assert demand["finetune"] == {"CPU": 16 + 2 + 1, "GPU": 8 + 2}  # its encoders run beside it
    assert demand["evaluate"] == {"CPU": 5, "GPU": 1}


def test_mermaid_has_no_arrow_that_follows_from_others(workflow):
    graph = build_graph(workflow.model_copy(update={"evaluations": {"dpg": {"suite": "dpg"}}}))
    lines = mermaid(graph, {"encode": "made, 3 s"}).splitlines()
    assert lines[0] == "flowchart LR"
    assert '    encode["encode<br/>made, 3 s"]' in lines
    assert [line.strip() for line in lines if "-->" in line] == [
        "curate --> color_stats", "color_stats --> basis", "curate --> encode", "encode --> finetune",
        "basis --> finetune", "finetune --> evaluate", "finetune --> evaluations_dpg",
    ]  # fmt: skip
    assert "basis            curate, color_stats      2 CPU" in format_graph(graph)


def test_the_job_prints_the_graph_and_starts_nothing(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    config = "jobs/configs/workflow/klein_9b.yaml"
    monkeypatch.setattr(sys, "argv", ["jobs/workflow.py", config, "--graph"])
    runpy.run_path("jobs/workflow.py", run_name="__main__")
    out = capsys.readouterr().out
    assert "caption   curate                   8 CPU, 8 GPU" in out
    assert "    caption --> encode" in out
    assert json.loads(out.splitlines()[-1]) == {"artifact": None, "mlflow_run": None, "metrics": {"steps": 6}}


DIAMOND = {
    "a": Node("a", "a", {}, {"CPU": 1}),
    "b": Node("b", "b", {"x": "a"}, {"CPU": 2}),
    "c": Node("c", "c", {"x": "a"}, {"CPU": 2}),
    "d": Node("d", "d", {"x": "b", "y": "c"}, {"CPU": 2, "GPU": 1}),
}
SECONDS = {"a": 1.0, "b": 2.0, "c": 5.0, "d": 1.0}


def test_the_critical_path_is_the_longest():
    assert critical_path(DIAMOND, SECONDS) == ["a", "c", "d"]
    assert critical_path(DIAMOND, {**SECONDS, "b": 6.0}) == ["a", "b", "d"]


@pytest.mark.parametrize(
    ("capacity", "starts"),
    [
        ({"CPU": 4, "GPU": 1}, {"a": 0, "b": 1, "c": 1, "d": 6}),  # ends with the critical path, at 7
        ({"CPU": 3, "GPU": 1}, {"a": 0, "b": 1, "c": 3, "d": 8}),  # ends with the sum, at 9
        ({}, {"a": 0, "b": 1, "c": 3, "d": 8}),  # what fits nowhere still runs, alone
    ],
)
def test_steps_run_at_once_within_the_resources(capacity, starts):
    assert simulate(DIAMOND, SECONDS, capacity) == starts


def test_a_small_step_does_not_overtake_a_large_one():
    demand = {"large": {"CPU": 4}, "small": {"CPU": 1}, "runs": {"CPU": 1}, "free": {}}
    assert startable(["large", "small"], ["runs"], demand, {"CPU": 4}) == []
    assert startable(["small", "large"], ["runs"], demand, {"CPU": 4}) == ["small"]
    assert startable(["large", "small"], [], demand, {"CPU": 4}) == ["large"]
    assert startable(["free"], ["large"], demand, {}) == ["free"]
