"""The driver while the workers do not train: it reports what it waits for, handles signals, and ends in time."""

import sys
import threading
import time
from types import SimpleNamespace

import pytest
from ray import cloudpickle

from pipelines.core.cluster_resources import list_holders
from pipelines.core.step import Context, StepFailed
from pipelines.core.tracking import Tracker
from pipelines.train import driver
from pipelines.train.channel import Channel
from pipelines.train.config import TrainSettings

pytestmark = pytest.mark.ray
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def no_task(config, rank, workers):
    raise AssertionError("nothing trains here")


def settings_of(**sections) -> TrainSettings:
    return TrainSettings.model_validate(sections)


def test_insufficient_resources_are_reported(holder, local_ray, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(driver, "REPORT_SECONDS", 2.0)
    monkeypatch.setattr(driver, "train_function", lambda task: lambda config: {"ended": "finished"})
    context = Context(str(tmp_path), {}, Tracker("", ""))
    settings, cpus = settings_of(resources={"wait_minutes": 0.1}), local_ray.cluster_resources()["CPU"]
    with pytest.raises(StepFailed) as stopped:
        driver.train("finetune", no_task, settings, context, {})
    needs = f"1 CPU needed, 0 CPU of {cpus:g} CPU free; held by MapWorker (pid "
    assert str(stopped.value).startswith(f"finetune: gave up after 0.1 minutes (resources.wait_minutes): {needs}")
    (told,) = [r.message for r in caplog.records if "waiting for room" in r.message]
    assert told.startswith(f"finetune: waiting for room for its workers: {needs}")
    assert f"({cpus:g} CPU)" in told
    assert "\n" not in told
    local_ray.kill(holder)
    driver.train("finetune", no_task, settings_of(), context, {})  # no resources remain in use


@pytest.fixture
def stuck(monkeypatch):
    """Return a trainer that neither ends nor reacts."""
    monkeypatch.setattr(driver, "ABANDON_SECONDS", 0.1)
    released = threading.Event()
    yield SimpleNamespace(fit=lambda: released.wait(60))
    released.set()


@pytest.fixture
def channel(local_ray, request):
    channel = Channel(request.node.name)
    yield channel
    channel.clear()


def test_a_stop_before_the_start_ends_at_once(stuck, channel):
    asked, started = threading.Event(), time.monotonic()
    asked.set()
    with pytest.raises(StepFailed, match="finetune: stopped before the training started, as requested"):
        driver.fit("finetune", settings_of(), stuck, channel, asked)
    assert time.monotonic() - started < 10
    assert channel.is_stop_requested()


@pytest.mark.parametrize(("good", "told"), [(5, "step 5"), (None, "none")])
def test_a_hanging_run_is_ended_in_time(stuck, channel, good, told):
    channel.report(good=good)
    asked, started = threading.Event(), time.monotonic()
    threading.Timer(0.5, asked.set).start()
    with pytest.raises(StepFailed, match=f"did not stop within 0.02 minutes .*; last complete checkpoint: {told}$"):
        driver.fit("finetune", settings_of(watch={"stop_minutes": 0.02}), stuck, channel, asked)
    assert time.monotonic() - started < 15


def test_hanging_workers_are_ended(local_ray, tmp_path, monkeypatch):
    def hang(config):
        from pipelines.train.channel import Channel

        Channel(config["attempt"]).report(good=3)
        time.sleep(600)

    monkeypatch.setattr(driver, "train_function", lambda task: hang)
    config = {"attempt": "hanging", "folder": str(tmp_path)}
    settings, channel, asked = settings_of(watch={"stop_minutes": 0.05}), Channel("hanging"), threading.Event()

    def ask():
        while channel.progress() is None:
            time.sleep(0.1)
        asked.set()

    threading.Thread(target=ask, daemon=True).start()
    with pytest.raises(StepFailed, match="did not stop within 0.05 minutes .*last complete checkpoint: step 3"):
        driver.fit("finetune", settings, driver.make_trainer(no_task, settings, config), channel, asked)
    deadline = time.monotonic() + 20
    while local_ray.available_resources().get("CPU") != local_ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, list_holders()
        time.sleep(0.1)
