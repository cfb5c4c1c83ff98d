import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from asymflow.metrics.mplug import MODEL, Mplug
from asymflow.metrics.weights import MissingWeights


@pytest.fixture
def modelscope(monkeypatch):
    """Stands in for the package: its pipeline says yes to pictures that are red at their first pixel. Keeps what it was
    called with."""
    made = []

    def pipeline(task, **settings):
        if settings["model"] == "damo/missing":
            raise RuntimeError("404")
        made.append((task, settings))
        return lambda asked: {"text": "yes" if asked["image"].getpixel((0, 0)) == (255, 0, 0) else asked["question"]}

    modules = {
        "modelscope": {},
        "modelscope.pipelines": {"pipeline": pipeline},
        "modelscope.utils": {},
        "modelscope.utils.constant": {"Tasks": SimpleNamespace(visual_question_answering="visual-question-answering")},
    }
    for name, contents in modules.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    return made


def pictures(*colors):
    return torch.tensor(colors, dtype=torch.uint8).view(-1, 3, 1, 1).expand(-1, 3, 6, 8)


def test_answers_in_their_order(modelscope):
    mplug = Mplug.load(device="cuda:1")
    assert modelscope == [
        ("visual-question-answering", {"model": MODEL, "model_revision": "master", "device": "cuda:1"})
    ]
    red, blue = (255, 0, 0), (0, 0, 255)
    answers = mplug(pictures(blue, red, blue, blue), ["is it red?", "is it?", " Yes ", "yes it is"])
    assert answers == [False, True, True, False]
    assert mplug(pictures(red)[:0], []) == []


def test_protocol_names_the_model(modelscope, tmp_path):
    assert Mplug.load(revision="v1.0").protocol["model"] == f"modelscope:{MODEL}@v1.0"
    (tmp_path / "weights").write_bytes(b"1")
    first = Mplug.load(str(tmp_path)).protocol["model"]
    (tmp_path / "weights").write_bytes(b"2")
    assert first.startswith("local:")
    assert Mplug.load(str(tmp_path)).protocol["model"] != first
    assert modelscope[-1][1] == {"model": str(tmp_path), "device": "cpu"}


def test_without_the_package_or_the_model(modelscope, monkeypatch):
    with pytest.raises(MissingWeights, match="damo/missing cannot be loaded by modelscope, RuntimeError: 404"):
        Mplug.load("damo/missing")
    monkeypatch.setitem(sys.modules, "modelscope.pipelines", None)  # as if not installed
    with pytest.raises(MissingWeights, match="needs the package modelscope"):
        Mplug.load()


def test_invalid_calls_are_refused():
    mplug = Mplug(lambda asked: {"text": ["yes"]}, "it")
    with pytest.raises(ValueError, match="expected text"):
        mplug(pictures((1, 1, 1)), ["is it?"])
    with pytest.raises(ValueError, match="1 images need as many questions"):
        mplug(pictures((1, 1, 1)), [])
    with pytest.raises(ValueError, match="expected uint8"):
        mplug(pictures((1, 1, 1)).float(), ["is it?"])
