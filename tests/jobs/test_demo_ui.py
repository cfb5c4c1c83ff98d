"""jobs/demo_ui.py as a person runs it; its page is tested in tests/pipelines/sample."""

import os
import runpy
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASE, ADAPTER = str(ROOT / "models/toy_klein"), str(ROOT / "models/toy_asymflow")


@pytest.mark.slow
def test_whole_process_at_the_command_line(monkeypatch):
    """Whole process, behind a proxy that is of no use to it, until Ctrl-C."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    environment = {n: v for n, v in os.environ.items() if n.lower() != "no_proxy"} | {
        "HTTP_PROXY": "http://127.0.0.1:9"
    }
    process = subprocess.Popen(
        [sys.executable, "jobs/demo_ui.py", "port=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # background jobs start with it ignored
    )
    try:
        url = process.stdout.readline().split(" ")[0]
        assert url.startswith("http://127.0.0.1:")
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url) as answer:
            assert answer.status == 200
            assert b"AsymFlow" in answer.read()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["base=absent"], "not a pixel model merged by jobs/export.py"),
        ([f"base={BASE}"], "adapter: missing"),
        (["base=absent", f"adapter={ADAPTER}"], "base='absent': no such folder"),
        (["adapter=./absent"], "adapter='./absent': no such folder"),
        (["safety.classifier=absent"], "safety.classifier='absent'"),
        (["device=cuda"], "device='cuda': PyTorch finds no GPU"),
        (["host=192.0.2.1"], "host='192.0.2.1', port=7860: cannot listen"),
        (["port=99999"], "port=99999: input should be less than or equal to 65535"),
        (["--port", "0"], "--port: settings are written key=value, like port=VALUE"),
    ],
)
def test_bad_arguments(run, monkeypatch, arguments, message):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    status, out, err = run(*arguments)
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_without_gradio(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run("port=0") == (2, "", "error: the page needs Gradio: pip install 'asymflow[ui]'\n")


def test_a_port_that_is_taken(run):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        status, _, err = run(f"port={port}")
    assert status == 2
    assert err.startswith(f"error: host='127.0.0.1', port={port}: cannot listen")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run jobs/demo_ui.py in this process: (exit status, stdout, stderr). Loading a model is an error."""

    def load_nothing(*arguments):
        raise AssertionError("a model was loaded")

    for name in ("GRADIO_TEMP_DIR", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setattr("pipelines.sample.demo_page.open_sampler", load_nothing)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(ROOT)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["jobs/demo_ui.py", *arguments])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / "jobs/demo_ui.py"), run_name="__main__")
        return stopped.value.code, *capsys.readouterr()

    return run
