import sys

import pytest
from ray import cloudpickle

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not find this module


class MapWorker:
    """An actor like those that a failed step may leave behind."""

    def ping(self):
        return True


@pytest.fixture
def holder(local_ray):
    """Start an actor that holds every processor."""
    cpus = local_ray.cluster_resources()["CPU"]
    actor = local_ray.remote(MapWorker).options(num_cpus=cpus).remote()
    assert local_ray.get(actor.ping.remote())
    yield actor
    local_ray.kill(actor)


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory):
    """URI of one MLflow store for all tests: creating its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
