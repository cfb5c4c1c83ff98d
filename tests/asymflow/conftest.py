import pytest
from toy_pipeline import ADAPTER, BASE

from asymflow.diffusers_pipeline import AsymFlux2KleinPipeline


@pytest.fixture(scope="session")
def toy():
    pipeline = AsymFlux2KleinPipeline.from_pretrained(BASE, adapter=ADAPTER)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipe(toy, monkeypatch):
    """The toy; what a test changes of it is undone."""
    monkeypatch.setattr(toy, "scheduler", toy.scheduler)
    return toy
