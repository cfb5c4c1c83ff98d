import pytest
from finetune_runs import settings_for


@pytest.fixture(scope="session")
def plain(tiny_workflow, tmp_path_factory):
    """The artifact of a run that nothing interrupted, on one worker without ZeRO, with validations."""
    from pipelines.finetune import STEP
    from pipelines.steps import run_step

    folder = tmp_path_factory.mktemp("plain")
    return run_step(STEP, settings_for(tiny_workflow, folder, zero_stage=0, without_validation=False)).artifact
