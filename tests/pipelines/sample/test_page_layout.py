"""Tabs of models without edits or without a latent base."""

from types import SimpleNamespace

import pytest
from toy_pipeline import ADAPTER, BASE

from asymflow.adapters import SamplingDefaults
from pipelines.sample.config import Safety
from pipelines.sample.page_layout import build_page
from pipelines.sample.page_sampler import DemoSampler
from pipelines.sample.page_tabs import TABS, read_form
from pipelines.sample.page_uploads import PageStore
from pipelines.sample.safety import SafetyFilter
from pipelines.sample.sampler import PipelineSampler
from pipelines.train.finetune.export_formats import convert

gradio = pytest.importorskip("gradio")


def names_of(demo_sampler):
    return {part["props"].get("elem_id") for part in build_page(gradio, demo_sampler).config["components"]}


def test_a_merged_model_has_no_latent_one_beside_it(tmp_path):
    sampler = PipelineSampler(convert(str(ADAPTER), "merged", str(tmp_path / "merged"), str(BASE)))
    demo_sampler = DemoSampler(sampler, SafetyFilter(Safety(), "cpu"), PageStore(tmp_path))
    names = names_of(demo_sampler)
    for tab in TABS:
        assert {f"{tab.name}-{part}" for part in ("prompt", "pixel", "details", *tab.images)} <= names
        assert not {f"{tab.name}-latent", f"{tab.name}-beside"} & names
    request = read_form(sampler, TABS[0], {"prompt": "a fox", "seed": 0, "steps": 2})
    result = demo_sampler.sample(request, lambda event: None)
    assert list(result.files) == ["pixel"]
    assert result.metadata["flagged"] == {"pixel": False}
    assert result.compared is None


def test_a_family_without_a_pipeline_has_text_to_image_only(tmp_path):
    sampler = SimpleNamespace(adapter="adapter", defaults=SamplingDefaults(height=64, width=64), patch_size=4)
    names = names_of(DemoSampler(sampler, SafetyFilter(Safety(), "cpu"), PageStore(tmp_path)))
    assert {"text-prompt", "text-latent", "text-pixel"} <= names
    assert not {f"{tab.name}-prompt" for tab in TABS[1:]} & names
