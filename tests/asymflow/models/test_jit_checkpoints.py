"""Published checkpoints against an independent network that reads their own names, in float64."""

import argparse
import zipfile
from dataclasses import replace

import pytest
import torch
from published_jit import SIDE, TINY, batch, published_velocity, random_tensors
from safetensors.torch import save_file

from asymflow.models.jit_checkpoints import EMA, read_published
from asymflow.models.jit_positions import positions
from asymflow.models.jit_weights import BASIS, SCALE
from asymflow.srgb import SrgbSpace


def file_of(tmp_path, kind="jit", config=TINY, dtype=torch.float32, name="file.safetensors", **changes):
    tensors = random_tensors(config, kind) | changes
    tensors = {key: value.to(dtype).contiguous() for key, value in tensors.items() if value is not None}
    save_file(tensors, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["jit", "asymflow"])
def test_a_file_is_read_with_its_constants_and_its_basis(tmp_path, kind, dtype):
    rows = SIDE // TINY.patch_size
    fixed = positions(TINY.width, (rows, rows), torch.device("cpu"))[None]
    constants = {"feat_rope.base_rope.freqs_cos": torch.ones(9, 8), "x_embedder.pos_embed": fixed}
    found = read_published(file_of(tmp_path, kind, dtype=dtype, **constants), context_from=TINY.context_from)
    assert found.kind == kind
    assert found.config == TINY
    assert found.side == SIDE
    assert found.noise_scale == 1
    rounded = {key: value.to(dtype).double() for key, value in random_tensors(TINY, kind).items()}
    if kind == "asymflow":
        assert found.subspace.rank == 5
        assert found.subspace.space == SrgbSpace()
        assert float((found.subspace.A - rounded[BASIS]).abs().max()) < 5e-3
        rounded[BASIS] = found.subspace.A.double()
    else:
        assert found.subspace.rank == 0
    x_t, sigma, labels = batch()
    with torch.no_grad():
        u = found.build()(x_t.float(), sigma.float(), labels)
    expected = published_velocity(rounded, TINY, kind, x_t, sigma, labels)
    assert float((u - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_a_pth_of_jit_gives_its_first_moving_average(tmp_path):
    sets = {entry: random_tensors(TINY, "jit", seed=i) for i, entry in enumerate(("model", EMA, "model_ema2"))}
    content = {entry: {f"net.{key}": v.float() for key, v in tensors.items()} for entry, tensors in sets.items()}
    path = tmp_path / "checkpoint-last.pth"
    torch.save({**content, "epoch": 3, "args": argparse.Namespace(model="JiT-B/16")}, path)
    for entry in (EMA, "model"):
        values = read_published(path, TINY.context_from, entry=entry).values
        torch.testing.assert_close(values["label.weight"].double(), sets[entry]["y_embedder.embedding_table.weight"])
    with pytest.raises(ValueError, match="has no weights 'ema'; it has model, model_ema1, model_ema2"):
        read_published(path, TINY.context_from, entry="ema")


@pytest.mark.parametrize(("patch", "scale"), [(8, 1.0), (16, 1.0), (32, 2.0), (64, 4.0)])
def test_jit_of_larger_patches_has_its_published_noise(tmp_path, patch, scale):
    config = replace(TINY, patch_size=patch)
    assert read_published(file_of(tmp_path, config=config), 1).noise_scale == scale
    assert read_published(file_of(tmp_path, config=config), 1, noise_scale=3.0).noise_scale == 3
    assert read_published(file_of(tmp_path, "asymflow", config), 1).noise_scale == 1
    assert read_published(file_of(tmp_path, config=config), 1).side == 16 * patch


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks.1.mlp.w3.bias": None, "blocks.2.norm1.weight": None}, "2 tensors are missing: blocks.1.mlp.w3.bias"),
        ({"repa.weight": torch.ones(2)}, "1 tensors are unknown: repa.weight"),
        ({SCALE: torch.ones(())}, "1 tensors are unknown: scale_buffer"),
        ({"final_layer.linear.bias": torch.ones(7)}, r"final_layer.linear.bias is \[7\], not \[48\]"),
        ({"blocks.0.attn.proj.bias": torch.full((32,), torch.nan)}, "blocks.0.attn.proj.bias holds NaN"),
        ({"pos_embed": torch.randn(1, 9, 32)}, "its position embedding is not the fixed one"),
        ({"pos_embed": torch.randn(1, 8, 32)}, "its position embedding is not the fixed one"),
        ({BASIS: torch.eye(48, 4), SCALE: torch.tensor(2.0)}, "its scale_buffer is 2; a model from scratch has 1"),
        ({BASIS: torch.ones(48, 4), SCALE: torch.ones(())}, "the columns of the basis are not orthonormal"),
        ({BASIS: torch.eye(40, 4), SCALE: torch.ones(())}, r"its proj_buffer is \[40, 4\]; expected 48 rows"),
        ({"in_context_posemb": torch.ones(3)}, r"in_context_posemb has shape \[3\]; expected 3 dimensions"),
        ({"t_embedder.mlp.2.weight": torch.ones(())}, r"t_embedder.mlp.2.weight has shape \[\]; expected 2 dimensions"),
        ({"blocks.0.attn.q_norm.weight": None}, "it lacks blocks.0.attn.q_norm.weight"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(ValueError, match=f"file.safetensors is not a checkpoint of JiT: .*{message}") as found:
        read_published(file_of(tmp_path, **changes), TINY.context_from)
    assert "\n" not in str(found.value)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_file_that_cannot_be_read_is_refused_and_runs_no_code(tmp_path, capsys):
    (tmp_path / "text.pth").write_text("no tensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    torch.save({"model_ema1": {"net.x": torch.ones(1)}, "args": Evil()}, tmp_path / "evil.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with zipfile.ZipFile(tmp_path / "jit-b-16.zip", "w") as archive:
        archive.write(tmp_path / "list.pth", "checkpoint-last.pth")
    for name, message in {
        "absent.pth": "there is no checkpoint at .*absent.pth; JiT's are linked in .*hf download Lakonik/AsymFlow-",
        "": "is a folder; give the checkpoint in it",
        "text.pth": "text.pth is not a file of tensors: ",
        "text.safetensors": "text.safetensors is not a readable safetensors file",
        "evil.pth": "evil.pth is not a file of tensors: ",
        "list.pth": "list.pth holds a list; expected tensors by name",
        "jit-b-16.zip": "is a zip archive; unpack it and give the checkpoint-last.pth in it",
    }.items():
        with pytest.raises(ValueError, match=message) as found:
            read_published(tmp_path / name)
        assert "\n" not in str(found.value)
    assert "executed" not in capsys.readouterr().out


def test_where_class_tokens_enter_must_be_known(tmp_path):
    with pytest.raises(ValueError, match="width 32 with 4 blocks is not a published size.*give context_from"):
        read_published(file_of(tmp_path))
    without = replace(TINY, context_tokens=0, context_from=0)
    assert read_published(file_of(tmp_path, config=without)).config == without
