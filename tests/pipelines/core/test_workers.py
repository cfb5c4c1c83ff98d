import pytest

from pipelines.core.config import ConfigError, Settings, validate
from pipelines.core.workers import ModelWorkers, Workers, peak_demand


def test_plain_workers_need_no_gpu_and_no_options():
    assert (Workers().gpus, Workers().options) == (0, {})


@pytest.mark.parametrize(
    ("gpus", "device", "precision"), [(0, "cpu", "float32"), (0.5, "cuda", "bfloat16"), (2, "cuda", "bfloat16")]
)
def test_device_and_precision_follow_the_gpus(gpus, device, precision):
    workers = ModelWorkers(gpus_per_worker=gpus)
    assert (workers.gpus, workers.device, workers.precision) == (gpus, device, precision)


@pytest.mark.parametrize(
    ("tree", "named"), [({"workers": 0}, "workers=0"), ({"gpus_per_worker": -1}, "gpus_per_worker=-1")]
)
def test_fewer_than_none_are_refused(tree, named):
    with pytest.raises(ConfigError, match=f"{named}: input should be greater than or equal to"):
        validate(ModelWorkers, tree)


class Pools(Settings):
    first: Workers = Workers(workers=4)
    second: ModelWorkers = ModelWorkers(workers=3, gpus_per_worker=0.5)
    missing: Workers | None = None
    name: str = "none"


class Step(Settings):
    pools: Pools = Pools()
    third: ModelWorkers = ModelWorkers(workers=1, gpus_per_worker=2)


def test_pools_run_one_after_the_other():
    assert peak_demand(Workers(workers=5)) == {"CPU": 5}
    assert peak_demand(Pools()) == {"CPU": 4, "GPU": 1.5}
    assert peak_demand(Step()) == {"CPU": 4, "GPU": 2}
