"""The pipeline on the shipped toy: real diffusers, real files."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from PIL import Image
from safetensors.torch import load_file, save_file

from asymflow.adapters import load_adapter, save_pth
from asymflow.diffusers_pipeline import AsymFlux2KleinPipeline
from asymflow.models.adapted import pack_latents
from asymflow.models.autoencoder import encode_images
from asymflow.models.conditioned import TextVelocity
from asymflow.models.flux2 import PixelFlux2
from asymflow.models.pixel import AsymFlux2Transformer2DModel
from asymflow.models.text import pad_embeddings
from asymflow.oklab import RELEASED
from asymflow.patches import patchify
from asymflow.samplers import euler, heun, unipc
from asymflow.schedule import calibrate
from asymflow.subspace import Subspace
from pipelines.convert import convert

MODELS = Path(__file__).parents[2] / "models"
BASE, ADAPTER = MODELS / "toy_klein", MODELS / "toy_asymflow"
PROMPTS = ["an emoji of socks on white", "a photo of a red flower, wide view", "a photo of grass"]


@pytest.fixture(scope="module")
def toy():
    pipeline = AsymFlux2KleinPipeline.from_pretrained(BASE, adapter=ADAPTER)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipe(toy, monkeypatch):
    """The toy; what a test changes of it is undone."""
    monkeypatch.setattr(toy, "scheduler", toy.scheduler)
    return toy


def double(pipe):
    """The same pipeline with a network in float64."""
    parts = {**pipe.components, "transformer": copy.deepcopy(pipe.transformer).double()}
    again = AsymFlux2KleinPipeline(**parts, oklab_mean=pipe.space.mean, oklab_std=pipe.space.std, **vars(pipe.defaults))
    again.set_progress_bar_config(disable=True)
    return again


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(count=1, height=64, width=64, seed=0):
    return torch.randn(count, 3, height, width, generator=seeded(seed))


def samples(pipe, prompt=PROMPTS[0], **options):
    """(B, 3, H, W) in [0, 1]"""
    options = {"latents": noise(), "num_inference_steps": 3, "output_type": "pt", **options}
    return pipe(prompt, **options).images


def largest_difference(a, b):
    return float((a - b).abs().max())


def test_defaults_of_the_shipped_toy_give_a_picture_of_it(pipe):
    image = pipe(PROMPTS[0], generator=seeded()).images[0]
    assert isinstance(image, Image.Image) and image.size == (64, 64)
    corners = np.asarray(image)[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.mean() > 200  # on white
    assert np.asarray(image)[16:48, 16:48].std() > 40  # with something on it


def test_equals_the_model_as_it_was_trained_beside_its_teacher(pipe):
    transformer = Flux2Transformer2DModel.from_pretrained(BASE, subfolder="transformer")
    model = PixelFlux2.from_latent(transformer, Subspace.load(ADAPTER / "subspace.safetensors"))
    model.add_lora(128, dropout=0.0)
    load_adapter(model.eval(), ADAPTER)
    text, mask = pad_embeddings(pipe.encode_prompt(PROMPTS[0]))
    clamp = pipe.space.clamp_to_gamut
    expected = unipc(lambda x_t, sigma: model(x_t, sigma, text, mask), noise(), 3, 3.6, transform_x_0=clamp)
    found = samples(pipe, guidance_scale=1.0, output_type="latent")
    assert largest_difference(found, expected) < 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("how", ["saved", "comfyui", "merged", "released", "pth"])
def test_files_give_the_same_picture_again(pipe, tmp_path, how):
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


def test_an_adapter_alone_is_read_from_its_rounded_buffers(pipe, tmp_path):
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (tmp_path / name).write_bytes((ADAPTER / name).read_bytes())
    again = AsymFlux2KleinPipeline.from_pretrained(BASE, adapter=tmp_path, text_encoder=None, tokenizer=None)
    A = again.transformer.proj_buffer
    assert largest_difference(A.T @ A, torch.eye(128)) < 1e-5
    assert 0 < largest_difference(A, pipe.transformer.proj_buffer) < 1e-3


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_theorem_1_before_training_it_samples_what_the_latent_pipeline_samples(guidance_scale):
    subspace = Subspace.load(ADAPTER / "subspace.safetensors")
    pixel = AsymFlux2KleinPipeline.from_pretrained(BASE, subspace=subspace)
    latent = Flux2KleinPipeline.from_pretrained(BASE)
    shift, steps, start = 3.6, 10, noise(seed=3, width=96)
    pixel.scheduler = FlowMatchEulerDiscreteScheduler()
    # tau of a shifted sigma is another shift: 1 / s times as large
    latent.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift / subspace.s)
    pixel.set_progress_bar_config(disable=True)
    latent.set_progress_bar_config(disable=True)
    texts = [embedding[None] for embedding in pixel_texts(pixel, PROMPTS[0], "")]
    common = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "height": 64, "width": 96}
    x_0 = pixel(
        prompt_embeds=texts[0], negative_prompt_embeds=texts[1], latents=start, output_type="latent", shift=shift,
        orthogonal_guidance=False, clamp_to_gamut=False, **common,
    ).images  # fmt: skip
    z_1 = (patchify(start, 16) @ subspace.A).mT.unflatten(2, (4, 6))
    z_0 = latent(
        prompt_embeds=texts[0], negative_prompt_embeds=texts[1], latents=z_1, output_type="latent", **common
    ).images
    tokens = whitened(latent.vae, z_0)
    found = patchify(x_0, 16) @ subspace.A / subspace.s
    assert largest_difference(found, tokens) < 1e-4 * float(tokens.abs().max())
    outside = patchify(x_0, 16) - subspace.s * found @ subspace.A.T
    assert outside.abs().max() < 1e-3  # the low-rank model has nothing there


def pixel_texts(pixel, *prompts):
    pixel.defaults = AsymFlux2KleinPipeline.from_pretrained(BASE, adapter=ADAPTER, text_encoder=None).defaults
    return pixel.encode_prompt(prompts)


def whitened(vae, latents):
    """The stock pipeline's answer, before it undid the whitening."""
    tokens, bn = pack_latents(latents), vae.bn
    return (tokens - bn.running_mean) / torch.sqrt(bn.running_var + vae.config.batch_norm_eps)


def test_the_whitening_of_the_test_is_the_encoders():
    vae = Flux2KleinPipeline.from_pretrained(BASE).vae
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(image).latent_dist.mode()
        assert largest_difference(whitened(vae, latents), encode_images(vae, image)) < 1e-5


@pytest.mark.parametrize(
    ("scheduler", "sampler"), [(FlowMatchEulerDiscreteScheduler, euler), (FlowMatchHeunDiscreteScheduler, heun)]
)
def test_a_scheduler_names_the_solver(pipe, scheduler, sampler):
    pipe.scheduler = scheduler()
    text, mask = pad_embeddings(pipe.encode_prompt(PROMPTS[0]))
    velocity = TextVelocity(pipe.transformer, (64, 64), list(text))
    expected = sampler(velocity, noise(), 3, 3.6, transform_x_0=pipe.space.clamp_to_gamut)
    assert largest_difference(samples(pipe, guidance_scale=1.0, output_type="latent"), expected) < 1e-6
    pipe.scheduler = DDIMScheduler()
    with pytest.raises(ValueError, match="DDIMScheduler; allowed: UniPCMultistepScheduler"):
        samples(pipe)


@pytest.mark.parametrize(("height", "width"), [(32, 64), (64, 32), (48, 80), (96, 64)])
def test_aspect_ratios(pipe, height, width):
    start = noise(height=height, width=width)
    images = samples(pipe, height=height, width=width, latents=start)
    assert images.shape == (1, 3, height, width) and 0 <= float(images.min()) and float(images.max()) <= 1
    turned = samples(pipe, height=width, width=height, latents=start.mT)
    assert largest_difference(images, turned.mT) > 0.05  # rows and columns are not mixed up


def test_a_batch_of_different_prompts_equals_one_by_one(pipe):
    start = noise(3)
    together = samples(pipe, PROMPTS, latents=start)
    for i, prompt in enumerate(PROMPTS):
        assert largest_difference(samples(pipe, prompt, latents=start[i : i + 1]), together[i : i + 1]) < 1e-4
    negatives = ["", "dark", "a photo"]
    together = samples(pipe, PROMPTS, latents=start, negative_prompt=negatives)
    alone = samples(pipe, PROMPTS[1], latents=start[1:2], negative_prompt=negatives[1])
    assert largest_difference(alone, together[1:2]) < 1e-4


def test_several_images_a_prompt_and_their_generators(pipe):
    generators = [seeded(seed) for seed in range(4)]
    images = samples(pipe, PROMPTS[:2], latents=None, generator=generators, num_images_per_prompt=2)
    assert images.shape[0] == 4
    third = samples(pipe, PROMPTS[1], latents=None, generator=seeded(2))
    assert largest_difference(third, images[2:3]) < 1e-4
    assert largest_difference(images[0], images[1]) > 0.05


def test_negative_prompts_and_embeddings_matter(pipe):
    plain = samples(pipe)
    assert largest_difference(samples(pipe, negative_prompt=PROMPTS[1]), plain) > 0.05
    assert largest_difference(samples(pipe, negative_prompt=PROMPTS[1], guidance_scale=1.0), plain) > 0.01
    text = pipe.encode_prompt([PROMPTS[0], ""])
    given = samples(pipe, None, prompt_embeds=text[:1], negative_prompt_embeds=text[1:])
    assert largest_difference(given, plain) < 1e-4
    assert largest_difference(samples(pipe, None, prompt_embeds=text[0][None]), plain) < 1e-4


def test_guidance_is_orthogonal_limited_and_within_the_gamut_unless_told_otherwise(pipe):
    plain = samples(pipe, guidance_scale=5.0)
    for change in (
        {"orthogonal_guidance": False}, {"guidance_interval": (0.0, 0.5)}, {"clamp_to_gamut": False}, {"shift": 9.0},
    ):  # fmt: skip
        assert largest_difference(samples(pipe, guidance_scale=5.0, **change), plain) > 1e-3, change
    never = samples(pipe, guidance_scale=5.0, guidance_interval=(0.0, 0.0))
    assert largest_difference(never, samples(pipe, guidance_scale=1.0)) == 0


def test_shift_grows_with_the_side_from_one_to_four_megapixels(pipe):
    defaults = pipe.defaults
    shifts = [round(defaults.shift_at(side, side), 3) for side in (64, 1024, 1536, 2048, 4096)]
    assert shifts == [3.6, 3.6, 5.4, 7.2, 7.2]
    assert math.isclose(defaults.shift_at(960, 1280), 3.6 * math.sqrt(960 * 1280) / 1024)


def test_callbacks_see_and_change_and_end_it(pipe):
    seen = []

    def watch(pipeline, step, timestep, tensors):
        seen.append((step, timestep, sorted(tensors)))
        return {}

    names = ["latents", "prompt_embeds"]
    plain = samples(pipe, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=names)
    assert [(step, kept) for step, _, kept in seen] == [(step, names) for step in range(3)]
    assert seen[0][1] == 1000 and seen[0][1] > seen[1][1] > seen[2][1] > 0

    def grey(pipeline, step, timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else {}

    changed = samples(pipe, callback_on_step_end=grey, output_type="latent")
    assert changed.abs().max() == 0

    def stop(pipeline, step, timestep, tensors):
        pipeline._interrupt = True
        return {}

    ended = samples(pipe, callback_on_step_end=stop)
    assert ended.shape == plain.shape and largest_difference(ended, plain) > 0.05
    assert largest_difference(samples(pipe), plain) == 0  # and the next call is whole again


def test_output_types(pipe):
    tensors = samples(pipe)
    arrays = samples(pipe, output_type="np")
    pictures = samples(pipe, output_type="pil")
    assert arrays.shape == (1, 64, 64, 3)
    assert largest_difference(torch.from_numpy(arrays).permute(0, 3, 1, 2), tensors) < 1e-6
    assert abs(np.asarray(pictures[0]) / 255 - arrays[0]).max() < 0.51 / 255
    latent = samples(pipe, output_type="latent")
    assert largest_difference((pipe.space.decode(latent) + 1) / 2, tensors) < 1e-6
    assert isinstance(pipe(PROMPTS[0], num_inference_steps=1, return_dict=False), tuple)


def test_reference_pictures_are_looked_at(pipe):
    picture = Image.linear_gradient("L").convert("RGB")
    plain = samples(pipe)
    with_one = samples(pipe, image=picture.resize((64, 64)), height=64, width=64)
    with_two = samples(pipe, image=[picture.resize((64, 64)), picture.resize((64, 80))], height=64, width=64)
    assert largest_difference(with_one, plain) > 1e-3 and largest_difference(with_two, with_one) > 1e-3
    followed = samples(pipe, image=picture.resize((90, 70)), latents=None, generator=seeded())
    assert followed.shape[-2:] == (64, 80)  # its own size, cut to whole patches
    with pytest.raises(ValueError, match="too small"):
        samples(pipe, image=picture.resize((32, 32)))


def test_before_training_a_reference_is_what_the_latent_pipeline_would_be_given():
    subspace = Subspace.load(ADAPTER / "subspace.safetensors")
    transformer = Flux2Transformer2DModel.from_pretrained(BASE, subfolder="transformer")
    model = AsymFlux2Transformer2DModel.from_latent(transformer, subspace)
    x_t, reference, text = noise(), noise(seed=1, height=64, width=80)[0], torch.randn(1, 5, 96, generator=seeded())
    sigma = torch.tensor([0.4])
    with torch.no_grad():
        u = TextVelocity(model, (64, 64), list(text), [reference])(x_t, sigma)
        tau, k = calibrate(sigma, subspace.s)
        z_t = k * patchify(x_t, 16) @ subspace.A
        z_reference = patchify(reference[None], 16) @ subspace.A / subspace.s
        ids = Flux2KleinPipeline._prepare_image_ids([torch.zeros(1, 128, 4, 5)])
        u_z = transformer(
            hidden_states=torch.cat([z_t, z_reference], dim=1),
            encoder_hidden_states=text,
            timestep=tau,
            img_ids=torch.cat([stock_ids(4, 4), ids], dim=1),
            txt_ids=Flux2KleinPipeline._prepare_text_ids(text),
            return_dict=False,
        )[0][:, :16]
    x_0_low = patchify(x_t - 0.4 * u, 16) @ subspace.A / subspace.s
    assert largest_difference(x_0_low, z_t - tau * u_z) < 1e-4


def stock_ids(height, width):
    return Flux2KleinPipeline._prepare_latent_ids(torch.zeros(1, 128, height, width))


def test_padding_is_seen_where_the_model_was_trained_with_it(pipe):
    stock = Flux2KleinPipeline.from_pretrained(BASE, vae=None, dtype=torch.float32)
    with torch.no_grad():
        expected, _ = stock.encode_prompt(PROMPTS[0])
    padded = AsymFlux2KleinPipeline(**pipe.components, text_padding="max_length", height=64, width=64)
    assert largest_difference(padded.encode_prompt(PROMPTS[0])[0], expected[0]) < 1e-5
    alone = pipe.encode_prompt(PROMPTS[0])[0]
    assert len(expected[0]) == 512 and len(alone) < 512
    assert largest_difference(alone, expected[0, : len(alone)]) < 1e-4


def test_loras_of_styles_go_on_top(pipe, tmp_path):
    layer = "transformer.transformer_blocks.0.attn.to_q"
    generator = seeded()
    save_file(
        {
            f"{layer}.lora_A.weight": torch.randn(4, 256, generator=generator),
            f"{layer}.lora_B.weight": torch.randn(256, 4, generator=generator),
        },
        tmp_path / "style.safetensors",
    )
    plain = samples(pipe)
    pipe.load_lora_weights(tmp_path / "style.safetensors", adapter_name="style")
    try:
        styled = samples(pipe)
        pipe.set_adapters(["style"], adapter_weights=[0.5])
        half = samples(pipe)
    finally:
        pipe.unload_lora_weights()
    assert largest_difference(styled, plain) > 0.05 and largest_difference(styled, half) > 0.01
    assert largest_difference(samples(pipe), plain) == 0  # the adapter itself cannot be taken off


def test_half_precision_keeps_the_basis(tmp_path, pipe):
    pipe.save_pretrained(tmp_path)
    half = AsymFlux2KleinPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.transformer.dtype == torch.bfloat16 and half.text_encoder.dtype == torch.bfloat16
    assert torch.equal(half.transformer.proj_buffer, pipe.transformer.proj_buffer)
    assert torch.equal(half.transformer.to(torch.float16).proj_buffer, pipe.transformer.proj_buffer)
    assert half.transformer.scale_buffer.dtype == torch.float32


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


def test_weights_kept_in_eight_bits_give_nearly_the_same_picture(tmp_path, pipe):
    plain = samples(pipe)
    pipe.save_pretrained(tmp_path)
    small = AsymFlux2KleinPipeline.from_pretrained(tmp_path)
    small.set_progress_bar_config(disable=True)
    small.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    assert small.transformer.transformer_blocks[0].ff.linear_in.weight.dtype == torch.float8_e4m3fn
    assert small.transformer.proj_buffer.dtype == torch.float32
    assert 1e-3 < largest_difference(samples(small), plain) < 0.5


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"height": 100}, "100x64 is not a multiple of 16"),
        ({"width": 8}, "64x8 is not a multiple of 16"),
        ({"prompt": None}, "either prompt or prompt_embeds"),
        ({"prompt": []}, "prompt is empty"),
        ({"prompt": PROMPTS, "latents": noise(2)}, "starting noise of these pictures is"),
        ({"prompt": PROMPTS, "latents": None, "generator": [seeded()]}, "1 generators were given for 3"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts were given for 1"),
        ({"guidance_scale": 0.5}, "scale is 0.5"),
        ({"guidance_interval": (0.9, 0.1)}, "interval is"),
        ({"num_inference_steps": 0}, "steps is 0"),
        ({"shift": -1.0}, "shift is -1"),
        ({"callback_on_step_end_tensor_inputs": ["latent"]}, "has latent; allowed: latents, prompt_embeds"),
    ],
)
def test_bad_arguments_are_named(pipe, options, named):
    with pytest.raises(ValueError, match=named):
        samples(pipe, **{"prompt": PROMPTS[0], **options})


def test_what_cannot_be_loaded_is_said(tmp_path, pipe):
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


def test_an_adapter_of_another_base_is_refused_with_what_differs(tmp_path):
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
    with pytest.raises(ValueError, match="is another than the adapter beside it was made with"):
        AsymFlux2KleinPipeline.from_pretrained(BASE, adapter=tmp_path)


def test_the_adapter_of_the_toy_is_of_the_released_form():
    tensors = load_file(ADAPTER / "diffusion_pytorch_model.safetensors")
    assert tensors["x_embedder.weight"].dtype == torch.float16 and tensors["proj_buffer"].dtype == torch.bfloat16
    assert {name.split(".lora_")[0] for name in tensors if ".lora_" in name} == {
        *(f"transformer_blocks.0.{ff}.linear_{end}" for ff in ("ff", "ff_context") for end in ("in", "out")),
        *(f"single_transformer_blocks.{i}.attn.to_out" for i in range(4)),
        *(f"time_guidance_embed.timestep_embedder.linear_{i}" for i in (1, 2)),
    }
