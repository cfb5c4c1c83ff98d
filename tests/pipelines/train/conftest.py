import os

import pytest
from ports import free_port
from training_runs import KINDS, Training


@pytest.fixture(scope="session")
def _group():
    """Set up torch.distributed for this process, once: DeepSpeed can be initialized only once per process."""
    import deepspeed
    import torch.distributed as dist

    from pipelines.core.prebuild import put_ninja_on_path

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.environ["PATH"])
        put_ninja_on_path()
        environment = {
            "PATH": os.environ["PATH"], "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "RANK": "0",
            "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1",
        }  # fmt: skip
        for name, value in environment.items():
            patch.setenv(name, value)
        deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    yield environment
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone(_group):
    """Make this process the only worker of a training, for a module."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _group.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def _plain_runs():
    return {}


@pytest.fixture
def training(request, tiny_workflow) -> Training:
    """Return the kind of training that the test is parametrized with."""
    return KINDS[request.param](tiny_workflow)


@pytest.fixture
def plain(training, _plain_runs, tmp_path_factory):
    """Return the artifact of an uninterrupted run: one worker, no ZeRO, with validations."""
    from pipelines.core.step import run_step

    name = training.step.name
    if name not in _plain_runs:
        settings = training.settings_for(tmp_path_factory.mktemp(name), zero_stage=0, without_validation=False)
        _plain_runs[name] = run_step(training.step, settings).artifact
    return _plain_runs[name]
