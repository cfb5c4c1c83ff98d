import pytest

from pipelines.core.config import ConfigError, RunSettings, validate
from pipelines.core.errors import StepFailed
from pipelines.core.step import PlannedStep
from pipelines.experiments import step_graph
from pipelines.experiments.graph_runner import GraphResult
from pipelines.experiments.step_graph import raise_failures, run_independent, task_of


@pytest.fixture
def plan(monkeypatch):
    """Plan steps that have names instead of settings and outcomes; return the list of those for which Ray started."""
    started = []

    class Settings:
        run = RunSettings()

        def __init__(self, name):
            self.name = name

    def plan_step(step, settings):
        finished = settings.name if settings.name.startswith("finished") else None
        return PlannedStep(step, settings, {}, "", "", finished)

    def run(planned, parent):
        if planned.settings.name.startswith("bad"):
            raise StepFailed(f"{planned.settings.name}: no room")
        return f"{planned.settings.name} under {parent}"

    monkeypatch.setattr(step_graph, "plan_step", plan_step)
    monkeypatch.setattr(step_graph, "peak_demand", lambda settings: {})
    monkeypatch.setattr(step_graph, "start_ray", lambda run: started.append(run))
    monkeypatch.setattr(step_graph, "cluster_resources", dict)
    monkeypatch.setattr(PlannedStep, "run", run)
    return started, lambda *names: run_independent(None, {name: Settings(name) for name in names}, "parent")


def test_finished_steps_do_not_start_ray(plan):
    started, run = plan
    assert run("finished 1", "finished 2") == {"finished 1": "finished 1", "finished 2": "finished 2"}
    assert not started
    assert run("new", "finished") == {"new": "new under parent", "finished": "finished"}
    assert len(started) == 1


def test_all_run_before_a_failure_is_raised(plan):
    with pytest.raises(StepFailed, match="^bad 1: no room; bad 2: no room$"):
        plan[1]("bad 1", "good", "bad 2")
    assert len(plan[0]) == 3


def test_an_outcome_is_logged_once(plan):
    logged = []

    def log(outcome):
        logged.append(outcome)
        return outcome

    planned = step_graph.plan_step(None, type("Settings", (), {"name": "finished", "run": None}))
    assert task_of(planned, "parent", log).finished == "finished"
    assert logged == ["finished"]


def test_the_end_names_each_failed_and_each_skipped_step():
    raise_failures(GraphResult({"curate": "c"}))
    failed = {"basis": ConfigError("pca_rank=9: too large"), "encode": StepFailed("encode: 2 of 3 items failed")}
    result = GraphResult({}, failed, {"finetune": ["encode", "basis"], "evaluate": ["finetune"]})
    with pytest.raises(StepFailed) as error:
        raise_failures(result)
    assert str(error.value) == (
        "basis.pca_rank=9: too large; encode: 2 of 3 items failed; "
        "not run: finetune (needs encode, basis), evaluate (needs finetune)"
    )
    with pytest.raises(ConfigError, match=r"^basis\.pca_rank=9: too large; not run: finetune$"):
        raise_failures(GraphResult({}, {"basis": failed["basis"]}, {"finetune": []}))
    with pytest.raises(StepFailed, match="^encode: MemoryError$"):
        raise_failures(GraphResult({}, {"encode": MemoryError()}))


@pytest.mark.ray
@pytest.mark.slow
def test_two_steps_share_the_cluster_at_the_same_time(held_out, tmp_path):
    """Each declares one of at least two processors: both start before either has ended."""
    from mlflow.tracking import MlflowClient

    from pipelines.core.tracking import tracking_uri
    from pipelines.data.color_stats import STEP

    tree = {"curated": held_out, "resources": {"workers": 1}}
    runs = {name: {"storage": str(tmp_path / name)} for name in ("one", "two")}
    settings = {name: validate(STEP.settings, {**tree, "run": run}) for name, run in runs.items()}
    outcomes = run_independent(STEP, settings, "")
    one, two = (outcomes[name].artifact.manifest for name in settings)
    assert one["files"] == two["files"]
    assert one["id"] == two["id"]
    assert not outcomes["two"].reused
    clients = {name: MlflowClient(tracking_uri(one.run)) for name, one in settings.items()}
    spans = [clients[name].get_run(outcomes[name].mlflow_run).info for name in settings]
    assert max(span.start_time for span in spans) < min(span.end_time for span in spans)
    assert {span.status for span in spans} == {"FINISHED"}
