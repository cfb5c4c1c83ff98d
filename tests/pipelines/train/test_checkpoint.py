import json
from pathlib import Path

import pytest
import torch

from pipelines.core import storage
from pipelines.train.checkpoint import (
    DamagedCheckpoint,
    list_checkpoints,
    load_newest,
    prune,
    write_checkpoint,
)
from pipelines.train.config import Checkpoints


def tensors_of(step: int) -> dict[str, dict[str, torch.Tensor]]:
    return {kind: {"a": torch.full((3,), float(step)), "b": torch.arange(2)} for kind in ("trainable", "average")}


@pytest.fixture
def folder(tmp_path) -> str:
    return str(tmp_path / ".train" / "checkpoints")


def write(folder: str, *steps: int, attempt: str = "one") -> None:
    for step in steps:
        write_checkpoint(folder, tensors_of(step), {"step": step, "seed": 7}, attempt)


def test_checkpoints_round_trip(folder):
    assert load_newest(folder) is None
    write(folder, 5, 10)
    checkpoint, tensors = load_newest(folder)
    assert checkpoint.step == 10
    assert checkpoint.state["seed"] == 7
    assert checkpoint.state["attempt"] == "one"
    assert tensors.keys() == {"trainable", "average"}
    for kind, expected in tensors_of(10).items():
        assert all(torch.equal(tensors[kind][name], tensor) for name, tensor in expected.items())
    assert load_newest(folder, ["average"])[1].keys() == {"average"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-1] + b"x"),
        lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
        lambda file: file.unlink(),
    ],
    ids=["another byte", "cut off", "missing"],
)
def test_a_damaged_checkpoint_is_skipped(folder, damage, caplog):
    write(folder, 5, 10)
    newest = list_checkpoints(folder)[-1]
    damage(Path(newest.uri) / "average.safetensors")
    with pytest.raises(DamagedCheckpoint, match="average.safetensors"):
        newest.read("average")
    assert load_newest(folder)[0].step == 5
    assert "using the checkpoint before it" in caplog.text
    assert len(list_checkpoints(folder)) == 2  # damaged ones are kept


def test_a_folder_without_state_is_not_a_checkpoint(folder):
    write(folder, 5, 10)
    (Path(list_checkpoints(folder)[-1].uri) / "state.json").unlink()
    assert [c.step for c in list_checkpoints(folder)] == [5]


def test_retention_keeps_the_last_and_every_nth(folder):
    write(folder, *range(5, 45, 5))
    prune(folder, Checkpoints(keep_last=2, keep_every=20))
    assert [c.step for c in list_checkpoints(folder)] == [20, 35, 40]
    prune(folder, Checkpoints(keep_last=1))
    assert [c.step for c in list_checkpoints(folder)] == [40]


def test_incomplete_checkpoints_are_deleted(folder):
    """Files of a failed write or a lost attempt are deleted."""
    write(folder, 5)
    storage.write_bytes(storage.join(folder, "00000003-lost", "average.safetensors"), b"half")
    prune(folder, Checkpoints())
    assert {file.split("/")[-2] for file in storage.list_files(folder)} == {"00000005-one"}


def test_attempts_do_not_write_into_each_others_files(folder):
    write(folder, 5)
    write(folder, 5, attempt="two")
    assert len({c.uri for c in list_checkpoints(folder)}) == 2


def test_on_s3_with_a_store_that_fails_between_the_files(faulty_s3):
    uri, server = faulty_s3
    folder = f"{uri}/.train/checkpoints"
    write(folder, 5)
    server.deny("PUT .*00000010.*trainable")
    with pytest.raises(storage.StorageError):
        write(folder, 10)
    server.clear()
    assert load_newest(folder)[0].step == 5
    write(folder, 15)
    prune(folder, Checkpoints(keep_last=2))
    assert [c.step for c in list_checkpoints(folder)] == [5, 15]
    assert not any("00000010" in file for file in storage.list_files(folder))


def test_the_state_is_json_with_sizes_and_checksums(folder):
    write(folder, 5)
    (checkpoint,) = list_checkpoints(folder)
    state = json.loads(storage.read_bytes(storage.join(checkpoint.uri, "state.json")))
    assert state["step"] == 5
    assert state["files"].keys() == {"trainable.safetensors", "average.safetensors"}
    assert all(len(f["sha256"]) == 64 and f["bytes"] > 0 for f in state["files"].values())
