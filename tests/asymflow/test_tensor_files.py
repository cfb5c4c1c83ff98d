import json

import torch
from safetensors import safe_open

from asymflow.tensor_files import sort_metadata, write_tensors

TENSORS = {"b": torch.arange(6.0).view(2, 3).T, "a": torch.ones(2, dtype=torch.bfloat16)}
METADATA = {f"key {i}": "ü" * i for i in reversed(range(20))}


def test_tensors_and_metadata_are_read_back(tmp_path):
    write_tensors(tmp_path / "new" / "file.safetensors", TENSORS, METADATA)
    with safe_open(tmp_path / "new" / "file.safetensors", "pt") as file:
        assert file.metadata() == METADATA
        assert set(file.keys()) == set(TENSORS)
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in TENSORS.items())


def test_equal_content_gives_equal_bytes(tmp_path):
    for name in ("one", "two"):
        write_tensors(tmp_path / name, TENSORS, METADATA)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_metadata_are_sorted_and_the_header_keeps_its_size(tmp_path):
    header = json.dumps({"__metadata__": {"b": "1", "a": "2"}, "x": {}}).encode()
    file = tmp_path / "file"
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"data")
    sort_metadata(file)
    content = file.read_bytes()
    assert content[:8] == len(header).to_bytes(8, "little")
    assert content[8 + len(header) :] == b"data"
    assert list(json.loads(content[8 : 8 + len(header)])["__metadata__"]) == ["a", "b"]
