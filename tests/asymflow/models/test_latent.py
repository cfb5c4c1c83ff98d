import json
import sys
from dataclasses import replace
from types import ModuleType

import pytest

from asymflow.models import klein, latent
from asymflow.models.latent import family_of


def index(folder, text):
    (folder / "model_index.json").write_text(text)
    return folder


def test_an_unknown_pipeline_class_names_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="no model_index.json.*known: Flux2KleinPipeline"):
        family_of(tmp_path)
    with pytest.raises(ValueError, match="'StableDiffusionPipeline'; known: Flux2KleinPipeline"):
        family_of(index(tmp_path, json.dumps({"_class_name": "StableDiffusionPipeline"})))
    with pytest.raises(ValueError, match="pipeline None; known"):
        family_of(index(tmp_path, "{}"))


def test_a_modular_pipeline_is_named_by_its_own_index(tmp_path):
    (tmp_path / "modular_model_index.json").write_text(json.dumps({"_class_name": "Flux3DistilledModularPipeline"}))
    with pytest.raises(ValueError, match="its modular_model_index.json names the pipeline 'Flux3DistilledModular"):
        family_of(tmp_path)
    (tmp_path / "modular_model_index.json").write_text(json.dumps({"_class_name": "Flux3ModularPipeline"}))
    assert family_of(tmp_path).backbone.transformer == "Flux3Transformer2DModel"


def test_another_family_is_one_module(tmp_path, monkeypatch):
    module = ModuleType("another")
    module.FAMILY = replace(klein.FAMILY, pipelines=("AnotherPipeline",))
    monkeypatch.setitem(sys.modules, "another", module)
    monkeypatch.setattr(latent, "MODULES", (*latent.MODULES, "another"))
    assert family_of(index(tmp_path, json.dumps({"_class_name": "AnotherPipeline"}))) is module.FAMILY
