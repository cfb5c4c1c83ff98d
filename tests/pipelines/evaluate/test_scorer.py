import pytest
import torch

from asymflow.metrics.weights import MissingWeights
from pipelines.evaluate.prompts import Prompt
from pipelines.evaluate.scorer import ModelScorer, Resources, as_rows, content_fingerprint


class TwoFolders(ModelScorer):
    """Needs two folders; one of its settings may name a file."""

    base: str = ""
    shape: str = "tall"
    needed = {"model": ("OWNER/MODEL", ""), "base": ("OWNER/BASE", "")}
    files = ("shape",)
    half_on_gpu = True

    def load(self, device):
        return as_rows(lambda images, prompts: torch.tensor([float(len(text)) for text in prompts])), {
            "metric": "length"
        }


@pytest.fixture
def folder(tmp_path):
    for name in ("model", "base"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
    return tmp_path


def scorer(folder, **change):
    return TwoFolders(**{"model": str(folder / "model"), "base": str(folder / "base"), **change})


def test_models_are_identified_by_content_and_workers_do_not_matter(folder):
    identity = scorer(folder).identity()
    assert identity.keys() == {"model", "base", "shape"}
    assert identity["shape"] == "tall"
    assert identity["model"].startswith("local:")
    assert identity["model"] != identity["base"]
    assert scorer(folder, resources={"batch": 3}).identity() == identity
    (folder / "base" / "weights").write_text("other")
    assert scorer(folder).identity() != identity


def test_a_setting_that_names_a_file_is_its_content(folder):
    (folder / "shape.json").write_text("{}")
    found = scorer(folder, shape=str(folder / "shape.json")).identity()["shape"]
    assert found == content_fingerprint(str(folder / "shape.json"))
    assert found not in ("", str(folder / "shape.json"))
    assert content_fingerprint("tall") == content_fingerprint("") == ""


def test_precision_matters_on_a_gpu_alone(folder):
    assert "precision" not in scorer(folder).identity()
    on_gpu = scorer(folder, resources={"gpus_per_worker": 1}).identity()
    assert on_gpu["precision"] == "bfloat16"


def test_a_missing_model_is_named_with_its_setting(folder):
    with pytest.raises(MissingWeights, match="base: no model was named: needed is OWNER/BASE"):
        scorer(folder, base="").identity()


def test_a_metric_gives_one_row_per_image(folder):
    score, _ = scorer(folder).load("cpu")
    assert score(torch.zeros(2, 3, 8, 8), [Prompt("0", "cat"), Prompt("1", "a dog")]) == [{"score": 3}, {"score": 5}]


def test_an_environment_of_its_own_is_an_option_of_the_actors():
    assert Resources().options == {}
    python = {"py_executable": "/opt/python"}
    assert Resources(environment=python).options == {"runtime_env": python}
