import pytest

from pipelines.core.cluster_resources import describe_waiting, is_waiting, list_holders

pytestmark = pytest.mark.ray


def test_holders_of_resources_are_listed(holder, local_ray):
    cpus = local_ray.cluster_resources()["CPU"]
    (name,) = [name for name, held in list_holders() if held.get("CPU") == cpus]
    assert name.startswith("MapWorker (pid ")
    assert not is_waiting(1, {"CPU": 1})
    group = local_ray.util.placement_group([{"CPU": 1}])
    assert is_waiting(1, {"CPU": 1})
    assert not is_waiting(2, {"CPU": 1})
    assert not is_waiting(1, {"CPU": 2})
    local_ray.util.remove_placement_group(group)
    assert describe_waiting({"CPU": 1, "GPU": 2}).startswith("1 CPU, 2 GPU needed, 0 CPU, 0 GPU of")
