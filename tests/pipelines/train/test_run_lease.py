import os
import signal
import time

import pytest

from pipelines.core import storage
from pipelines.train.run_lease import Attempt, Lookout, Order, stopping_on_sigterm


def wait_for(lookout: Lookout, order: Order) -> None:
    deadline = time.monotonic() + 10
    while lookout.order != order:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_newest_attempt_fences_off_the_older(tmp_path):
    older = Attempt.claim(str(tmp_path))
    assert older.order() == Order.GO_ON
    newer = Attempt.claim(str(tmp_path))
    assert (older.order(), newer.order()) == (Order.FENCED, Order.GO_ON)
    older.ask_to_stop()  # says nothing to the newer one
    assert newer.order() == Order.GO_ON
    newer.ask_to_stop()
    assert newer.order() == Order.STOP
    assert Attempt.claim(str(tmp_path)).order() == Order.GO_ON


def test_a_lookout_sees_what_is_asked_and_a_store_that_fails_changes_nothing(faulty_s3):
    uri, server = faulty_s3
    attempt = Attempt.claim(uri)
    lookout = Lookout(attempt)
    server.deny("GET .*attempt.json")
    time.sleep(1.5)
    assert lookout.order == Order.GO_ON
    server.clear()
    attempt.ask_to_stop()
    wait_for(lookout, Order.STOP)
    Attempt.claim(uri)
    wait_for(lookout, Order.FENCED)
    lookout.close()


def test_sigterm_asks_for_a_stop_and_is_what_it_was_afterwards(tmp_path):
    attempt, before = Attempt.claim(str(tmp_path)), signal.getsignal(signal.SIGTERM)
    with stopping_on_sigterm(attempt):
        os.kill(os.getpid(), signal.SIGTERM)
        assert attempt.order() == Order.STOP
    assert signal.getsignal(signal.SIGTERM) == before


def test_of_several_orders_the_greatest_holds():
    assert max(Order.ASK, Order.STOP, Order.LEAVE, Order.FENCED) == Order.FENCED
    assert Order.GO_ON < Order.ASK < Order.STOP < Order.LEAVE


@pytest.mark.parametrize("junk", [b"", b"{"])
def test_a_file_that_cannot_be_read_is_an_error_of_the_store_not_a_fence(tmp_path, junk):
    attempt = Attempt.claim(str(tmp_path))
    storage.write_bytes(str(tmp_path / ".train" / "attempt.json"), junk)
    with pytest.raises(ValueError):
        attempt.order()
