"""The pipeline is saved, loaded, and given adapters of every kind."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from accelerate import cpu_offload_with_hook
from safetensors.torch import load_file, save_file
from toy_pipeline import ADAPTER, BASE, PROMPTS, largest_difference, samples

from asymflow.adapters import save_pth
from asymflow.diffusers_pipeline import AsymFlux2KleinPipeline
from asymflow.oklab import RELEASED
from asymflow.subspace import Subspace
from pipelines.evaluate.subject import _pipeline_defaults
from pipelines.train.finetune.export_formats import convert


@pytest.mark.parametrize("how", ["saved", "comfyui", "merged", "released", "pth"])
def test_files_give_the_same_image_again(pipe, tmp_path, how):
    if how == "saved":
        pipe.save_pretrained(tmp_path)
        again = AsymFlux2KleinPipeline.from_pretrained(tmp_path)
    elif how == "merged":
        convert(str(ADAPTER), "merged", str(tmp_path / "out"), str(BASE), "float32")
        again = AsymFlux2KleinPipeline.from_pretrained(tmp_path / "out")
    else:
        convert(str(ADAPTER), "comfyui" if how == "comfyui" else "released", str(tmp_path / "out"))
        if how == "pth":  # as the released adapter comes: no colour space, for which its own is taken
            (tmp_path / "out/subspace.safetensors").unlink()
        again = AsymFlux2KleinPipeline.from_pretrained(BASE, adapter=tmp_path / "out")
    again.set_progress_bar_config(disable=True)
    assert again.defaults == pipe.defaults
    assert again.space == (RELEASED if how == "pth" else pipe.space)
    for name, weight in pipe.transformer.state_dict().items():
        assert torch.equal(again.transformer.state_dict()[name], weight), name
    text = pipe.encode_prompt([PROMPTS[0], ""])
    given = {"prompt": None, "prompt_embeds": text[:1], "negative_prompt_embeds": text[1:], "clamp_to_gamut": False}
    assert largest_difference(again.encode_prompt(PROMPTS[0])[0], text[0]) < 1e-5
    again.transformer.to(torch.float64)  # float32 products depend on where in memory a weight lies
    x_0 = samples(double(pipe), output_type="latent", **given)
    assert largest_difference(samples(again, output_type="latent", **given), x_0) < 1e-6


def test_components_alone_sample_as_the_pipeline_does(pipe):
    again = AsymFlux2KleinPipeline(**pipe.components)
    again.set_progress_bar_config(disable=True)
    assert (again.defaults, again.space) == (pipe.defaults, pipe.space)
    assert again.defaults.height == 64
    assert again.defaults.text_padding == "none"
    own = AsymFlux2KleinPipeline(**pipe.components, shift=9.0, height=32)
    assert (own.defaults.shift, own.defaults.height, own.defaults.width) == (9.0, 32, 64)
    assert AsymFlux2KleinPipeline(**pipe.components).defaults == pipe.defaults  # the other's choice is its own
    with pytest.raises(ValueError, match="^oklab_mean, oklab_std: the transformer was made for"):
        AsymFlux2KleinPipeline(**pipe.components, oklab_mean=(0.5, 0.0, 0.0))


def test_a_choice_of_defaults_is_saved(pipe, tmp_path):
    AsymFlux2KleinPipeline(**pipe.components, shift=9.0).save_pretrained(tmp_path)
    again = AsymFlux2KleinPipeline.from_pretrained(tmp_path)
    assert again.defaults == replace(pipe.defaults, shift=9.0)
    assert again.transformer.config.sampling["shift"] == pipe.defaults.shift
    assert _pipeline_defaults(str(tmp_path)) == again.defaults


def test_folders_of_older_versions_keep_their_defaults(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    index, config = tmp_path / "model_index.json", tmp_path / "transformer" / "config.json"
    space = {"oklab_mean": list(pipe.space.mean), "oklab_std": pipe.space.std}
    index.write_text(json.dumps({**json.loads(index.read_text()), **vars(pipe.defaults), **space}))
    own = ("sampling", "oklab_mean", "oklab_std")
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k not in own}))
    again = AsymFlux2KleinPipeline.from_pretrained(tmp_path)
    assert (again.defaults, again.space) == (pipe.defaults, pipe.space)
    moved = AsymFlux2KleinPipeline(**again.components)
    assert (moved.defaults, moved.space) == (pipe.defaults, pipe.space)


def double(pipe):
    """The same pipeline with a network in float64."""
    parts = {**pipe.components, "transformer": copy.deepcopy(pipe.transformer).double()}
    again = AsymFlux2KleinPipeline(**parts, oklab_mean=pipe.space.mean, oklab_std=pipe.space.std, **vars(pipe.defaults))
    again.set_progress_bar_config(disable=True)
    return again


def test_an_adapter_alone_is_read_from_its_rounded_buffers(pipe, tmp_path):
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (tmp_path / name).write_bytes((ADAPTER / name).read_bytes())
    again = AsymFlux2KleinPipeline.from_pretrained(BASE, adapter=tmp_path, text_encoder=None, tokenizer=None)
    A = again.transformer.proj_buffer
    assert largest_difference(A.T @ A, torch.eye(A.shape[1])) < 1e-5
    assert 0 < largest_difference(A, pipe.transformer.proj_buffer) < 2**-9  # half a bfloat16 step below 1


def test_an_unmerged_adapter_gives_the_same_image_also_under_a_style(pipe, tmp_path):
    unmerged = AsymFlux2KleinPipeline.from_pretrained(BASE, adapter=ADAPTER, merge=False)
    unmerged.set_progress_bar_config(disable=True)
    plain = samples(pipe)
    assert largest_difference(samples(unmerged), plain) < 1e-3
    layer, generator = "transformer.transformer_blocks.0.attn.to_q", torch.Generator().manual_seed(0)
    style = {
        f"{layer}.lora_A.weight": torch.randn(4, 256, generator=generator),
        f"{layer}.lora_B.weight": torch.randn(256, 4, generator=generator),
    }
    save_file(style, tmp_path / "style.safetensors")
    found = []
    for pipeline in (pipe, unmerged):
        pipeline.load_lora_weights(tmp_path / "style.safetensors", adapter_name="style")
        try:
            pipeline.set_adapters(["style"] if pipeline is pipe else ["asymflow", "style"])
            found.append(samples(pipeline))
        finally:
            pipeline.delete_adapters("style")
    pipe.unload_lora_weights()  # it is shared, and with empty LoRA layers it would be saved under other names
    assert largest_difference(*found) < 1e-3 < 0.05 < largest_difference(found[0], plain)
    assert largest_difference(samples(pipe), plain) == 0
    with pytest.raises(ValueError, match="is not merged"):
        unmerged.save_pretrained(tmp_path / "saved")


def test_half_precision_keeps_the_basis(tmp_path, pipe):
    pipe.save_pretrained(tmp_path)
    half = AsymFlux2KleinPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.transformer.dtype == torch.bfloat16
    assert half.text_encoder.dtype == torch.bfloat16
    assert torch.equal(half.transformer.proj_buffer, pipe.transformer.proj_buffer)
    assert torch.equal(half.transformer.to(torch.float16).proj_buffer, pipe.transformer.proj_buffer)
    assert half.transformer.scale_buffer.dtype == torch.float32


def test_invalid_folders_are_named(tmp_path, pipe):
    load = AsymFlux2KleinPipeline.from_pretrained
    with pytest.raises(ValueError, match="is a Flux2KleinPipeline, a latent model: give adapter"):
        load(BASE)
    with pytest.raises(ValueError, match="no adapter folder at ./nowhere"):
        load(BASE, adapter="./nowhere")
    with pytest.raises(ValueError, match="not both"):
        load(BASE, adapter=ADAPTER, subspace=ADAPTER / "subspace.safetensors")
    with pytest.raises(ValueError, match="it lacks diffusion_pytorch_model.safetensors"):
        load(BASE, adapter=tmp_path)
    with pytest.raises(ValueError, match="save the pipeline, and quantize what was saved"):
        load(BASE, adapter=ADAPTER, quantization_config=object())
    without_text = load(BASE, adapter=ADAPTER, text_encoder=None, tokenizer=None)
    with pytest.raises(ValueError, match="without a text encoder: give prompt_embeds"):
        without_text(PROMPTS[0])
    with pytest.raises(ValueError, match=r"^prompt\[0\] is None"):
        pipe.encode_prompt([None])


def test_an_adapter_of_another_base_names_the_difference(tmp_path):
    for path in ADAPTER.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((ADAPTER / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_layers": 8, "num_attention_heads": 32}))
    with pytest.raises(ValueError, match="num_layers is 8, the model's 1; num_attention_heads is 32, the model's 4"):
        AsymFlux2KleinPipeline.from_pretrained(BASE, adapter=tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    subspace = Subspace.load(ADAPTER / "subspace.safetensors")
    other = Subspace(subspace.A.flip(0), subspace.s, subspace.layout, subspace.space)
    (tmp_path / "subspace.safetensors").unlink()
    save_pth(other, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="is not the one that the adapter was made with"):
        AsymFlux2KleinPipeline.from_pretrained(BASE, adapter=tmp_path)


def test_the_adapter_of_the_toy_is_of_the_released_form():
    tensors = load_file(ADAPTER / "diffusion_pytorch_model.safetensors")
    assert tensors["x_embedder.weight"].dtype == torch.float16
    assert tensors["proj_buffer"].dtype == torch.bfloat16
    assert {name.split(".lora_")[0] for name in tensors if ".lora_" in name} == {
        *(f"transformer_blocks.0.{ff}.linear_{end}" for ff in ("ff", "ff_context") for end in ("in", "out")),
        *(f"single_transformer_blocks.{i}.attn.to_out" for i in range(4)),
        *(f"time_guidance_embed.timestep_embedder.linear_{i}" for i in (1, 2)),
    }


@pytest.mark.parametrize("how", ["model", "leaf_level", "block_level"])
def test_offloading_changes_nothing(pipe, how):
    # An accelerator's part is played by the CPU: hooks and order of calls are the same.
    offloaded, cpu = AsymFlux2KleinPipeline.from_pretrained(BASE, adapter=ADAPTER), torch.device("cpu")
    offloaded.set_progress_bar_config(disable=True)
    calls = []
    for name in AsymFlux2KleinPipeline.model_cpu_offload_seq.split("->"):
        part = getattr(offloaded, name)
        if how == "model":
            cpu_offload_with_hook(part, cpu)
        part.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    if how != "model":
        offloaded.enable_group_offload(cpu, cpu, offload_type=how, num_blocks_per_group=1)
    assert largest_difference(samples(offloaded), samples(pipe)) < 1e-4
    assert calls == ["text_encoder"] * 2 + ["transformer"] * 6  # with guidance, three steps


def test_weights_kept_in_eight_bits_give_nearly_the_same_image(tmp_path, pipe):
    plain = samples(pipe)
    pipe.save_pretrained(tmp_path)
    small = AsymFlux2KleinPipeline.from_pretrained(tmp_path)
    small.set_progress_bar_config(disable=True)
    small.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    assert small.transformer.transformer_blocks[0].ff.linear_in.weight.dtype == torch.float8_e4m3fn
    assert small.transformer.proj_buffer.dtype == torch.float32
    assert 1e-3 < largest_difference(samples(small), plain) < 0.5
