import json

import pytest
import yaml

from pipelines.core import storage
from pipelines.core.config import ConfigError, validate
from pipelines.core.text_table import format_table
from pipelines.experiments.config import PeersSettings
from pipelines.experiments.peers import BASE, check, peers_table, run_peers, step_within, training_of


def test_time_is_that_of_the_fastest_training():
    at = {10: 1.0, 20: 2.0, 30: 3.0}
    assert step_within(at, [3.0, 2.5, 4.0]) == 20
    assert step_within(at, [3.0, 3.0]) == 30
    assert step_within(at, [3.0, None]) is None
    assert step_within({10: None}, [3.0, 2.0]) is None
    assert step_within(at, [3.0, 0.5]) is None


def test_the_table_has_intervals_over_seeds_and_differences_of_equal_seeds():
    values = {"one": [1.0, 2.0, 3.0], "two": [1.5, 2.5, 3.5]}
    rows = [
        {"method": m, "seed": seed, "equal": equal, "step": 10 + seed, "minutes": 2.0, "metrics": {"d": value}}
        for m, found in values.items()
        for seed, value in enumerate(found)
        for equal in ("steps", "seconds")
    ]
    rows.append({"method": BASE, "seed": None, "equal": None, "step": 0, "minutes": 0.0, "metrics": {"d": 4.0}})
    table = peers_table(rows, ["d"])
    assert table[1] == ("d", "steps", "one", "10 to 12", "2", "2 ± 2.5", "")
    assert table[2] == ("d", "steps", "two", "10 to 12", "2", "2.5 ± 2.5", "0.5 ± 0")
    assert table[5] == ("d", "", "base", "0", "0", "4", "")
    assert len(table) == 6
    single = peers_table([row for row in rows if row["seed"] in (0, None)], ["d"])
    assert single[2][5:] == ("1.5", "0.5")
    assert "10 to" not in format_table(single)
    without = peers_table([row for row in rows if row["equal"] != "seconds"], ["d"])
    assert without[3] == ("d", "seconds", "one", "-", "-", "no checkpoint in time", "")
    assert len(without) == 6


@pytest.fixture
def settings(tiny_workflow, tiny_base, tmp_path):
    """Return a comparison of a tiny AsymFlow and a tiny L2P, with changes."""
    workflow, _, outcomes = tiny_workflow
    made = {name: outcomes[step].artifact.uri for name, step in {"curated": "curate", "encoded": "encode"}.items()}
    own = {
        "asymflow": {"lora": {"rank": 2}, "loss": {"perceptual": None}},
        "l2p": {"model": "l2p", "lora": None, "l2p": {"blocks": 1, "channels": 4}, "loss": {"kind": "flow_matching"}},
    }
    for name, tree in own.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"step": "finetune", "base": str(tiny_base), **tree}))

    def make(**changes) -> PeersSettings:
        tree = {
            "run": {"storage": str(tmp_path / "runs")},
            "methods": {name: {"config": str(tmp_path / f"{name}.yaml")} for name in own},
            "changes": {
                **made, "basis": outcomes["basis"].artifact.uri, "time": {"shift": 3.0}, "validation": None,
                "optim": {"batch": 4, "steps": 4, "warmup_steps": 1}, "ema": {"start_step": 1},
                "checkpoints": {"every": 1, "keep_every": 1},
            },
            "seeds": [5],
            "metrics": ["sliced_wasserstein"],
            "evaluate": {
                "curated": made["curated"], "prompts": {"count": 3}, "images_per_prompt": 1,
                "sampling": {"steps": 2}, "bootstrap": {"set_resamples": 0}, "shown": 1, "leave_out": ["efficientnet"],
            },
        }  # fmt: skip
        return validate(PeersSettings, {**tree, **changes})

    return make


@pytest.mark.ray
@pytest.mark.slow
def test_methods_are_trained_and_evaluated_at_equal_steps_and_time(settings):
    folder, _, rows = run_peers(settings())
    by_steps, by_seconds = ([r for r in rows if r["equal"] == equal] for equal in ("steps", "seconds"))
    assert [(r["method"], r["step"]) for r in by_steps] == [("asymflow", 4), ("l2p", 4)]
    assert rows[-1]["method"] == BASE
    assert max(r["step"] for r in by_seconds) == 4  # of the fastest; the other may have no checkpoint as early
    assert max(r["minutes"] for r in by_seconds) <= min(r["minutes"] for r in by_steps)
    assert all(r["metrics"]["sliced_wasserstein"] > 0 for r in rows)
    assert by_steps[0]["metrics"] != by_steps[1]["metrics"]
    assert json.loads(storage.read_bytes(storage.join(folder, "rows.json"))) == rows
    assert run_peers(settings())[2] == rows
    with pytest.raises(ConfigError, match="optim.steps differs between the methods .asymflow: 4, l2p: 8.*`changes`"):
        methods = {name: method.model_dump() for name, method in settings().methods.items()}
        methods["l2p"]["changes"] = {"optim": {"steps": 8}}
        check(settings(methods=methods))
    with pytest.raises(ConfigError, match="metrics=.*'nonsense'.*: must be distances of the suite"):
        check(settings(metrics=["nonsense"]))
    with pytest.raises(ConfigError, match="methods.asymflow: curated"):
        check(settings(changes={**settings().changes, "curated": "/nowhere"}))


@pytest.mark.ray
def test_changes_are_merged_over_the_file_and_those_of_a_method_over_all(settings):
    one = settings()
    methods = {name: method.model_dump() for name, method in one.methods.items()}
    methods["l2p"]["changes"] = {"optim": {"lr": 0.5}}
    training = training_of(settings(methods=methods), "l2p", 7)
    assert (training.model, training.optim.lr, training.optim.batch, training.seed) == ("l2p", 0.5, 4, 7)
    assert training.run == one.run
