import os
from pathlib import Path

import pytest
import torch

from asymflow.adapters.basis import find_subspace, from_buffers, in_layout, load_pth, save_pth
from asymflow.oklab import RELEASED, OklabSpace
from asymflow.patches import patchify
from asymflow.subspace import Subspace


def make_subspace(layout="channel_first", space=RELEASED):
    A = torch.linalg.qr(torch.randn(768, 128, generator=torch.Generator().manual_seed(0))).Q
    return Subspace(A, 2.4, layout, space)


def buffers(subspace):
    return {"proj_buffer": subspace.A.bfloat16(), "scale_buffer": torch.tensor(subspace.s).bfloat16()}


def test_rounded_buffers_become_orthonormal_again():
    subspace = make_subspace()
    rounded = subspace.A.bfloat16().double()
    assert (rounded.T @ rounded - torch.eye(128)).abs().max() > 2e-4
    found = from_buffers(**{"A": subspace.A.bfloat16(), "s": torch.tensor(2.4).bfloat16()})
    A = found.A.double()
    assert (A.T @ A - torch.eye(128)).abs().max() < 1e-6
    assert (found.A - subspace.A).abs().max() < 5e-4
    assert found.s == pytest.approx(2.4, rel=4e-3)
    assert found.space == RELEASED
    assert found.layout == "channel_first"


@pytest.mark.parametrize(
    ("A", "named"),
    [
        (torch.randn(768, 128), "not orthonormal"),
        (torch.full((768, 128), torch.nan), "NaN"),
        (torch.randn(128, 768), "expected a basis"),
    ],
)
def test_bad_buffers_are_refused(A, named):
    with pytest.raises(ValueError, match=named):
        from_buffers(A.bfloat16(), torch.tensor(2.0))


@pytest.mark.parametrize("layout", ["channel_first", "channel_last"])
def test_the_released_pth_comes_back(tmp_path, layout):
    subspace = make_subspace(layout)
    save_pth(subspace, tmp_path / "s.pth")
    content = torch.load(tmp_path / "s.pth", weights_only=True)
    assert {name: (list(t.shape), t.dtype) for name, t in content.items()} == {
        "proj_mat_p16": ([768, 128], torch.float32), "scale_p16": ([], torch.float32),
    }  # fmt: skip
    again = load_pth(tmp_path / "s.pth")
    assert again.layout == "channel_first"
    assert again.s == pytest.approx(2.4)
    assert torch.equal(again.A, in_layout(subspace, "channel_first").A)
    images = torch.randn(1, 3, 32, 32)
    assert torch.allclose(patchify(images, 16) @ again.A, patchify(images, 16, layout) @ subspace.A, atol=1e-5)


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"proj_mat_p16": torch.eye(768)[:, :128]}, "expected proj_mat_p16 and scale_p16"),
        ({"proj_mat_p8": torch.eye(768)[:, :128], "scale_p8": torch.tensor(1.0)}, "does not fit a patch of that side"),
        ({"proj_mat_p16": torch.randn(768, 128), "scale_p16": torch.tensor(1.0)}, "not orthonormal"),
        (torch.ones(3), "expected proj_mat_p16"),
        (Evil(), "is not a file of tensors"),
    ],
)
def test_other_pth_files_are_refused_and_never_executed(tmp_path, monkeypatch, content, named):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "s.pth")
    with pytest.raises(ValueError, match=named):
        load_pth("s.pth")
    assert not Path("executed").exists()
    Path("s.pth").write_bytes(Path("s.pth").read_bytes()[:100])
    with pytest.raises(ValueError, match="is not a file of tensors"):
        load_pth("s.pth")


def test_subspace_beside_the_adapter_is_found_and_compared(tmp_path):
    space = OklabSpace((0.6, 0.01, 0.02), 0.2)
    last, tensors = (
        make_subspace("channel_last", space),
        buffers(in_layout(make_subspace("channel_last"), "channel_first")),
    )
    assert find_subspace(tmp_path, tensors).provenance == {"source": "proj_buffer of an adapter"}
    save_pth(last, tmp_path / "a.pth")
    assert find_subspace(tmp_path, tensors).space == RELEASED
    save_pth(last, tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"several subspaces, a\.pth, b\.pth"):
        find_subspace(tmp_path, tensors)
    last.save(tmp_path / "subspace.safetensors")
    found = find_subspace(tmp_path, tensors)
    assert found.space == space
    assert found.layout == "channel_first"
    with pytest.raises(ValueError, match="not the one that the adapter"):
        find_subspace(tmp_path, buffers(last))  # packed the other way
    with pytest.raises(ValueError, match="lacks proj_buffer and scale_buffer"):
        find_subspace(tmp_path, {})
