"""Identities of the model: limits in which the answer is known."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from scale_model import (  # noqa: E402
    STEPS,
    Accelerators,
    Cluster,
    Work,
    choices,
    exchange_seconds,
    finetune_settings,
    finetune_time,
    ideal,
    pipeline_time,
    schedule,
    step_time,
)

from pipelines.train.finetune.plan import plan  # noqa: E402

BASE = "FLUX.2-klein-base-9B"
WORK = Work("work", 0.5, False, 100, 2e6, 1e6, 1e6, 1e-3)
PERFECT = ideal(Cluster(1, cores=1))
SURE = Accelerators(1, straggler_rate=0.0, losses_per_node_hour=0.0)


def test_one_worker_without_overhead_takes_count_times_cost():
    assert schedule(40, 1, 2.5, PERFECT) == 100
    time = step_time(WORK, 1000, PERFECT)
    assert (time.start, time.workers, time.store) == (0, 500, 0)
    assert time.driver == 1
    assert time.total == 501


def test_workers_divide_the_time_until_there_is_one_per_task():
    works = {workers: step_time(WORK, 1000, replace(PERFECT, cores=workers)).workers for workers in (1, 2, 5, 10, 99)}
    assert works == {1: 500, 2: 250, 5: 100, 10: 50, 99: 50}
    assert schedule(7, 3, 1.0, PERFECT) == math.ceil(7 / 3)


def test_the_serial_part_of_the_driver_is_the_limit():
    """Amdahl: with any number of nodes the speed-up stays below total over serial time."""
    slow = step_time(WORK, 10_000, PERFECT)
    fast = step_time(replace(WORK, items_per_task=1), 10_000, replace(PERFECT, nodes=10_000))
    assert fast.total == pytest.approx(10 + 0.5)
    assert slow.total / fast.total < slow.total / slow.driver


def test_the_dispatch_is_the_limit_of_small_tasks():
    assert schedule(1000, 1000, 1e-6, replace(PERFECT, seconds_per_task=0.01)) == pytest.approx(10, rel=1e-4)


def test_the_store_is_the_limit_of_many_nodes():
    cluster = replace(PERFECT, cores=1, node_gb_per_second=1.0, store_gb_per_second=4.0)
    stores = [step_time(WORK, 1e6, replace(cluster, nodes=nodes)).store for nodes in (1, 2, 4, 8)]
    assert stores == [3000, 1500, 750, 750]
    work = replace(WORK, driver_seconds=0.0)
    assert step_time(work, 1e6, replace(cluster, hash_gb_per_second=0.5)).driver == 2000  # reads it back and hashes


def test_stragglers_and_losses_cost_what_is_expected():
    slow = replace(PERFECT, straggler_rate=0.1, straggler_factor=3.0)
    assert schedule(20_000, 1, 1.0, slow) == pytest.approx(20_000 * 1.2, rel=0.01)
    assert schedule(100, 10, 1.0, replace(slow, straggler_rate=1.0)) == 30
    # an exponential clock restarts a task of length t: (exp(rate t) - 1) (1 / rate + restart) on average
    lossy = replace(PERFECT, losses_per_node_hour=3600 / 50, restart_seconds=7.0)
    expected = (math.exp(10 / 50) - 1) * (50 + 7)
    assert schedule(20_000, 1, 10.0, lossy) == pytest.approx(20_000 * expected, rel=0.02)


def test_the_pipeline_takes_its_longest_branch():
    times, path = pipeline_time(1e6, Cluster(4))
    data = times["curate"].total + times["caption"].total + times["encode"].total
    assert path == pytest.approx(data)
    assert set(times) == {work.name for work in STEPS}
    assert path < sum(time.total for time in times.values())


def test_the_finetune_is_that_of_the_plan_without_overheads():
    planned = plan(finetune_settings(BASE, 1, 0, False, 1))
    one = finetune_time(planned.settings, SURE)
    assert one.compute == pytest.approx(planned.seconds_per_step)
    assert one.exchange == 0
    assert one.hours == pytest.approx(15_000 * planned.seconds_per_step / 3600)
    checkpointed = finetune_time(finetune_settings(BASE, 1, 0, True, 1), SURE)
    assert checkpointed.compute / one.compute == pytest.approx(4 / 3, abs=0.03)
    assert checkpointed.gib < one.gib


def test_gpu_hours_without_overheads_do_not_depend_on_the_number_of_gpus():
    free = replace(SURE, node_gb_per_second=math.inf, network_gb_per_second=math.inf)
    hours = [n * finetune_time(finetune_settings(BASE, n, 0, False, 1), replace(free, count=n)).hours for n in (8, 256)]
    assert hours[0] == pytest.approx(hours[1])


@pytest.mark.parametrize("count", [8, 64])
def test_what_the_collectives_move(count):
    """ZeRO 1 moves as much as an all-reduce; ZeRO 2 reduces every micro-batch; ZeRO 3 gathers the weights too."""
    gpus = replace(SURE, count=count)
    planned = {stage: plan(finetune_settings(BASE, count, stage, False, 1)) for stage in range(4)}
    seconds = {stage: exchange_seconds(found, gpus) for stage, found in planned.items()}
    bandwidth = 1e9 * (gpus.node_gb_per_second if count == 8 else gpus.network_gb_per_second)
    values, passes = planned[0].values, 256 // count
    trained, ring = 4 * values.total_trained, (count - 1) / count
    assert seconds[0] == seconds[1] == pytest.approx(2 * ring * trained / bandwidth)
    assert seconds[2] == pytest.approx(ring * (passes + 1) * trained / bandwidth)
    frozen = 2 * (values.base + values.original)
    assert seconds[3] == pytest.approx(ring * passes * (trained + 3 * (frozen + trained)) / bandwidth)


def test_losses_cost_half_a_checkpoint_interval_and_a_restart():
    settings = finetune_settings(BASE, 8, 0, False, 1)
    sure, lossy = replace(SURE, count=8), replace(SURE, count=8, losses_per_node_hour=0.1)
    hours = finetune_time(settings, sure).hours
    lost = (settings.checkpoints.every / 2 * hours / 15_000) + lossy.restart_seconds / 3600
    assert finetune_time(settings, lossy).hours == pytest.approx(hours * (1 + 0.1 * lost))


def test_only_what_fits_is_chosen():
    found = choices("Qwen-Image", Accelerators(32))
    assert found
    assert all(one.gib <= 73.6 for one in found)
    assert [one.hours for one in found] == sorted(one.hours for one in found)
    assert not choices("Qwen-Image", Accelerators(8, gib=16.0))
