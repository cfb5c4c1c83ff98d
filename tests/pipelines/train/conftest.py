import pytest
from training_runs import KINDS, Training


@pytest.fixture(scope="session")
def _plain_runs():
    return {}


@pytest.fixture
def training(request, tiny_workflow) -> Training:
    """The kind that the test is parametrised with."""
    return KINDS[request.param](tiny_workflow)


@pytest.fixture
def plain(training, _plain_runs, tmp_path_factory):
    """The artifact of a run of that kind that nothing interrupted, on one worker without ZeRO, with validations."""
    from pipelines.core.step import run_step

    name = training.step.name
    if name not in _plain_runs:
        settings = training.settings_for(tmp_path_factory.mktemp(name), zero_stage=0, without_validation=False)
        _plain_runs[name] = run_step(training.step, settings).artifact
    return _plain_runs[name]
