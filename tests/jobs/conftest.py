import runpy
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture
def job(monkeypatch, capsys):
    """Run a job's file as `python jobs/NAME.py ARGUMENTS`: (exit status, stdout, stderr). Starting Ray is an error."""

    def no_ray(run):
        raise AssertionError("Ray was started")

    monkeypatch.setattr("pipelines.core.step.start_ray", no_ray)

    def run(name, *arguments):
        path = ROOT / "jobs" / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(path), run_name="__main__")
        return stopped.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def config(tmp_path):
    def write(tree):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    return write
