"""Identity of a model's images: every change of content changes it."""

import json
import shutil
from dataclasses import replace

import pytest
from toy_pipeline import ADAPTER, BASE

from asymflow.adapters import CONFIG, read_adapter, read_defaults, write_adapter
from pipelines.evaluate.subject import read_evaluated_model


@pytest.fixture
def names(tmp_path):
    """Return a function of an adapter's folder: {model: its identity}."""

    def read(adapter):
        subject = read_evaluated_model(str(BASE), str(adapter), None, {}, str(tmp_path / "out"))
        return {model: subject.identity(model) for model in ("trained", "lifted", "latent")}

    return read


@pytest.fixture
def adapter(tmp_path):
    return shutil.copytree(ADAPTER, tmp_path / "adapter")


def test_a_copied_adapter_has_the_same_identity(names, adapter):
    assert names(adapter) == names(ADAPTER)


def test_the_configuration_belongs_to_the_adapter_alone(names, adapter):
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps({**config, "sigma_min": 0.01}))
    found, before = names(adapter), names(ADAPTER)
    assert found["trained"] != before["trained"]
    assert found["latent"] == before["latent"]


def test_how_prompts_are_padded_belongs_to_every_model(names, adapter):
    tensors, config = read_adapter(adapter)
    defaults = read_defaults(adapter)
    write_adapter(adapter, tensors, config, None, replace(defaults, text_padding="max_length"))
    found, before = names(adapter), names(ADAPTER)
    assert defaults.text_padding == "none"
    assert all(found[model] != before[model] for model in before)
