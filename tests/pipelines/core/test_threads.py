import logging
import threading

import pytest

from pipelines.core.threads import add_label, run_in_thread, with_label


def test_the_result_and_any_exception_reach_the_caller():
    assert run_in_thread(lambda: 3, "three").result() == 3

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_thread(interrupt, "interrupted").result()


def test_messages_of_a_thread_have_its_label():
    def messages():
        record = logging.LogRecord("name", logging.WARNING, "", 1, "%d of %d", (1, 2), None)
        assert add_label(record)
        assert with_label("encode text: 3") == "encode text: 3"
        assert with_label("encode") == "encode"
        return [with_label("sample: 1"), with_label("encode: 2"), record.getMessage(), threading.current_thread().name]

    labelled = run_in_thread(messages, "encode", "encode").result()
    assert labelled == ["encode: sample: 1", "encode: 2", "encode: 1 of 2", "encode"]
    assert run_in_thread(lambda: with_label("encoder: 4"), "encode", "encode").result() == "encode: encoder: 4"
    assert run_in_thread(messages, "other").result() == ["sample: 1", "encode: 2", "1 of 2", "other"]
