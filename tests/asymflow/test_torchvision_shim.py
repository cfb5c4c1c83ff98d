import importlib.util
import subprocess
import sys
from pathlib import Path

import torch

from asymflow import torchvision_shim


def run(script):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_torchvision_can_be_imported_after_asymflow():
    assert run("import asymflow, torchvision; print(torchvision.ops.nms.__name__)") == "nms"


def test_active_only_where_operators_are_missing():
    """Asks torch, in a process without the shim, whether the compiled operators load."""
    spec = importlib.util.find_spec("torchvision")
    package = Path(spec.origin).parent
    script = f"import torch, pathlib\nfor so in pathlib.Path({str(package)!r}).glob('_C*.so'):\n    "
    script += "try: torch.ops.load_library(so)\n    except OSError: pass\nprint(hasattr(torch.ops.torchvision, 'nms'))"
    loads = run(script) == "True"
    applied = run("import asymflow; from asymflow import torchvision_shim as r; print(r.apply(), r._library)")
    assert applied.startswith(str(not loads))
    assert applied.endswith("None") == loads


def test_nothing_is_declared_where_operators_load(tmp_path, monkeypatch):
    (tmp_path / "_C.so").touch()
    monkeypatch.setattr(torchvision_shim, "_library", None)
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    spec = importlib.util.spec_from_file_location("torchvision", tmp_path / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert torchvision_shim.apply() is False
    assert torchvision_shim._library is None


def test_nothing_is_declared_without_torchvision(monkeypatch):
    monkeypatch.setattr(torchvision_shim, "_library", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert torchvision_shim.apply() is False
    assert torchvision_shim._library is None
