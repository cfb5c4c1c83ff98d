import os
from pathlib import Path

import pytest
from ports import free_port
from training_files import SIZES, write_files
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


@pytest.fixture
def make(tiny_transformer):
    """Return a function of optimizer and ZeRO stage: (engine, optimizer, model, its state), from the same weights."""
    import torch

    from asymflow.models.flux2 import PixelFlux2
    from asymflow.oklab import RELEASED
    from asymflow.subspace import Subspace
    from pipelines.train.engine import make_engine
    from pipelines.train.finetune.config import FinetuneSettings
    from pipelines.train.finetune.task import make_objective, parameter_groups
    from pipelines.train.state import TrainableState

    engines = []

    def make(optimizer="adam", zero_stage=0, clip=200.0, accumulation=1, loss=None):
        settings = FinetuneSettings.model_validate(
            {
                **{name: "x" for name in ("curated", "encoded", "basis", "base")},
                "loss": loss or {"kind": "flow_matching"},
                "optim": {"optimizer": optimizer, "clip": clip},
                "resources": {"zero_stage": zero_stage},
            }
        )
        torch.manual_seed(0)
        A = torch.linalg.qr(torch.randn(768, 128)).Q
        model = PixelFlux2.from_latent(tiny_transformer(8), Subspace(A, 1.7, "channel_first", RELEASED, {}))
        model.add_lora(rank=16, dropout=0.0)
        engine, inner = make_engine(
            make_objective(model, settings.loss), parameter_groups(model, settings.optim), settings, 2, accumulation
        )
        engines.append(engine)
        return engine, inner, model, TrainableState(engine, model.trainable())

    yield make
    for engine in engines:
        engine.destroy()  # free its buffers: with gigabytes of addresses each, the process could not fork any more


@pytest.fixture(scope="session")
def training_files(tmp_path_factory) -> Path:
    """Return a folder of small curated files, latents and text; see `training_files`."""
    return write_files(tmp_path_factory.mktemp("data"), SIZES)


@pytest.fixture(scope="session")
def mixed_files(tmp_path_factory) -> Path:
    """Return the same of text-to-image rows and edits with one and two reference images."""
    return write_files(tmp_path_factory.mktemp("mixed"), {"32x32-00000": 10, "32x32+1-00000": 9, "32x32+2-00000": 5})
