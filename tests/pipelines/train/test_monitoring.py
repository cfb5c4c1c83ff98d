import subprocess
import sys
import time

import pytest

from pipelines.train.config import Monitoring
from pipelines.train.monitoring import GiveUp, StepMonitor, StepTimer


def test_a_skipped_step_names_its_images_and_too_many_in_a_row_end_the_run(caplog):
    monitor = StepMonitor(Monitoring(skips=3))
    for step in (1, 2):
        monitor.record_skip(step, [f"key-{i}" for i in range(40)])
    assert "step 1 skipped" in caplog.text
    assert ", ".join(f"key-{i}" for i in range(40)) in caplog.text
    monitor.record_step(3, 1.0)  # an applied step between them
    monitor.record_skip(4, ["a"])
    monitor.record_skip(5, ["b"])
    with pytest.raises(GiveUp, match="stopped at step 6: 3 steps in a row"):
        monitor.record_skip(6, ["c"])


def test_a_loss_far_above_the_usual_is_a_spike(caplog):
    monitor = StepMonitor(Monitoring(spike=5))
    assert not monitor.record_step(0, 1000.0)  # no median yet
    assert not any(monitor.record_step(step, 1.5) for step in range(1, 50))
    assert not monitor.record_step(50, 7.4)
    assert monitor.record_step(51, 7.6)
    assert "step 51: loss spike: 7.6" in caplog.text
    assert not monitor.record_step(52, 1.0)


def test_one_rank_warns_for_all_and_all_count_alike(caplog):
    monitor = StepMonitor(Monitoring(skips=2), warns=False)
    for step in range(30):
        monitor.record_step(step, 1.0)
    assert monitor.record_step(30, 100.0)
    monitor.record_skip(31, ["a"])
    assert caplog.text == ""
    with pytest.raises(GiveUp):
        monitor.record_skip(32, ["a"])


def test_step_rates_exclude_pauses():
    speed = StepTimer()
    time.sleep(0.3)
    speed.restart()
    time.sleep(0.1)
    rates = speed.step(images=4, tokens=100, waited=0.01)
    assert 0.1 <= rates["train/speed/seconds_per_step"] < 0.3
    assert rates["train/speed/images_per_second"] == pytest.approx(4 / rates["train/speed/seconds_per_step"])
    assert rates["train/speed/tokens_per_second"] == pytest.approx(25 * rates["train/speed/images_per_second"])
    assert rates["train/speed/data_wait_seconds"] == 0.01
    assert rates["train/speed/memory_gib"] > 0.01


def test_an_expired_watchdog_ends_the_process_with_its_stack():
    code = """
import time
from pipelines.train.config import Monitoring
from pipelines.train.monitoring import Watchdog
watchdog = Watchdog(Monitoring(hang_minutes=0.5 / 60))
for _ in range(4):
    watchdog.reset()
    time.sleep(0.2)
print("alive", flush=True)
def stuck(): time.sleep(60)
stuck()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout == "alive\n"
    assert "Timeout" in done.stderr
    assert "in stuck" in done.stderr
