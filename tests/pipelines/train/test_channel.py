import time

import pytest

from pipelines.train.channel import Channel

pytestmark = pytest.mark.ray


@pytest.fixture
def channel(local_ray, request):
    channel = Channel(request.node.name)
    yield channel
    channel.clear()


def test_stop_requests_and_checkpoints_are_exchanged(local_ray, channel):
    @local_ray.remote
    def work(name):
        from pipelines.train.channel import Channel

        channel = Channel(name)
        before = channel.is_stop_requested()
        channel.report(good=7)
        while not channel.is_stop_requested():
            time.sleep(0.05)
        return before

    working = work.remote(channel.attempt)
    while channel.progress() is None:
        time.sleep(0.05)
    assert channel.progress() == {"good": 7}
    channel.request_stop()
    assert local_ray.get(working, timeout=30) is False
    channel.clear()
    assert channel.progress() is None
    assert not channel.is_stop_requested()
