"""Patch size, downsampling and rank come from the base's own files: everything works in any geometry of tokens."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from diffusers import Flux2KleinPipeline
from tiny_base import make_base

from asymflow.adapters import SamplingDefaults, save_adapter
from asymflow.diffusers_pipeline import AsymFlux2KleinPipeline
from asymflow.models.flux2 import PixelFlux2
from asymflow.moments import PatchMoments
from asymflow.oklab import RELEASED
from asymflow.patches import patchify
from asymflow.subspace import Subspace, fit_scale, procrustes_basis
from pipelines.core.artifacts import Artifact
from pipelines.core.base_models import load_image_encoder, read_geometry, read_patch_size
from pipelines.core.config import ConfigError, load_config, validate
from pipelines.data.basis.config import BasisSettings
from pipelines.data.basis.step import STEP as BASIS
from pipelines.sample.config import SampleSettings
from pipelines.sample.parameters import SamplingParameters
from pipelines.sample.sampler import PipelineSampler
from pipelines.sample.step import check
from pipelines.train.finetune.batches import Batch
from pipelines.train.finetune.config import FinetuneSettings, Loss, Perceptual
from pipelines.train.finetune.plan import plan
from pipelines.train.finetune.task import blank_batch, make_objective

GEOMETRIES = {"patch 4": (2, 2, 4, 8), "patch 8": (4, 8, 8, 32), "patch 16": (8, 32, 16, 128)}
"""Downsampling and channels of the autoencoder; then patch size and token width"""
CAPTIONS = ["picture 1", "picture 2, on red"]


class Made(NamedTuple):
    base: str
    patch_size: int
    width: int
    images: torch.Tensor
    z_0: torch.Tensor
    subspace: Subspace


@pytest.fixture(scope="module", params=GEOMETRIES.values(), ids=GEOMETRIES)
def made(request, tmp_path_factory) -> Made:
    downsampling, channels, patch_size, width = request.param
    base = str(make_base(tmp_path_factory.mktemp("geometry") / "base", downsampling, channels))
    images = torch.rand(16, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    z_0 = load_image_encoder(base, "cpu").encode(images)
    moments = PatchMoments(3 * patch_size**2, width)
    moments.update(patchify(RELEASED.encode(images), patch_size), z_0)
    assert moments.cross_gram is not None
    assert moments.latent_norm_sq is not None
    A = procrustes_basis(moments.cross_gram)
    s = fit_scale(A, moments.pixel_gram, moments.latent_norm_sq)
    return Made(base, patch_size, width, images, z_0, Subspace(A.float(), s, "channel_first", RELEASED, {}))


def transformer_of(base: str):
    return Flux2KleinPipeline.from_pretrained(base, vae=None, text_encoder=None, tokenizer=None).transformer


def batch_of(made: Made) -> Batch:
    generator = torch.Generator().manual_seed(1)
    shape = made.images[:2].shape
    return Batch(
        images=made.images[:2],
        z_0=made.z_0[:2],
        text=torch.randn(2, 3, 96, generator=generator),
        text_mask=torch.ones(2, 3).bool(),
        noise=torch.randn(shape, generator=generator),
        sigma=torch.tensor([0.1, 0.7]),
        weight=torch.ones(2),
        keys=["a", "b"],
        key_sums=torch.ones(2).double(),
    )


def test_the_geometry_is_read_from_the_folder(made):
    assert read_geometry(made.base) == (made.patch_size, made.width)
    encoder = load_image_encoder(made.base, "cpu")
    assert (encoder.pixels_per_token, encoder.token_width) == (made.patch_size, made.width)


def test_images_become_tokens_and_images_again_as_in_the_stock_pipeline(made):
    encoder, grid = load_image_encoder(made.base, "cpu"), (64 // made.patch_size, 96 // made.patch_size)
    assert made.z_0.shape == (16, grid[0] * grid[1], made.width)
    stock = Flux2KleinPipeline.from_pretrained(made.base)
    with torch.no_grad():
        latents = stock._encode_vae_image(made.images[:2], torch.Generator())  # packed in cells and whitened
    packed = stock._pack_latents(latents)
    torch.testing.assert_close(made.z_0[:2], packed, rtol=0, atol=1e-5)
    decoded = encoder.decode(made.z_0[:2], grid)
    assert decoded.shape == (2, 3, 64, 96)
    assert decoded.abs().max() <= 1
    mean, std = stock.vae.bn.running_mean, (stock.vae.bn.running_var + stock.vae.config.batch_norm_eps).sqrt()
    unpacked = stock._unpatchify_latents((packed * std + mean).mT.unflatten(2, grid))
    with torch.no_grad():
        torch.testing.assert_close(decoded, stock.vae.decode(unpacked).sample.clamp(-1, 1), rtol=0, atol=1e-5)


def test_the_stock_pipeline_samples_it(made):
    """diffusers' own class takes the downsampling from the autoencoder, and needs nothing else."""
    stock = Flux2KleinPipeline.from_pretrained(made.base)
    stock.set_progress_bar_config(disable=True)
    text = torch.zeros(1, 3, 96)
    images = stock(
        prompt_embeds=text, negative_prompt_embeds=text, height=64, width=96, num_inference_steps=1, output_type="pt",
        guidance_scale=1.0,
    ).images  # fmt: skip
    assert images.shape == (1, 3, 64, 96)


def test_every_loss_has_a_gradient(made):
    model = PixelFlux2.from_latent(transformer_of(made.base), made.subspace)
    model.add_lora(2, dropout=0.0)
    perceptual = Perceptual(net="squeeze", weights="random")
    for loss_settings in (Loss(kind="flow_matching"), Loss(perceptual=perceptual)):
        objective = make_objective(model, loss_settings)
        for batch in (batch_of(made), blank_batch(model, 2)):
            if batch.text.shape[1] == 3:
                model.zero_grad()
                objective(**batch.inputs())[0].backward()
                assert all(p.grad is not None and p.grad.isfinite().all() for p in model.trainable().values())
            else:
                assert torch.isfinite(objective(**batch.inputs())[0])
    latents = torch.nn.functional.pixel_shuffle(made.z_0[:2].mT.unflatten(2, (64 // made.patch_size, -1)), 2)
    arguments = (torch.randn(2, made.z_0.shape[1], 3 * made.patch_size**2), torch.tensor([0.2, 0.6]))
    text, grid = torch.zeros(2, 1, 96), (64 // made.patch_size, 96 // made.patch_size)
    packed = model.teacher_x_0_low(made.z_0[:2], *arguments, text, grid)
    assert torch.equal(model.teacher_x_0_low(latents, *arguments, text), packed)


def test_lifted_trained_and_latent_models_are_sampled(made, tmp_path):
    model = PixelFlux2.from_latent(transformer_of(made.base), made.subspace)
    model.add_lora(2, dropout=0.0)
    size = {"height": 64, "width": 96}
    save_adapter(model, tmp_path, SamplingDefaults(**size, num_inference_steps=2, guidance_scale=2.0, shift=3.0))
    sampler = PipelineSampler(made.base, str(tmp_path))
    assert sampler.pipeline.patch_size == made.patch_size
    parameters = SamplingParameters(**size, steps=2, guidance=2.0, shift=3.0)
    for sample in (sampler.pixel, sampler.latent):
        images = sample(CAPTIONS, [3, 4], parameters)
        assert images.shape == (2, 3, 64, 96)
        assert torch.isfinite(images).all()
    with pytest.raises(ValueError, match=f"is not a multiple of {made.patch_size}"):
        sampler.pipeline("picture 1", height=made.patch_size + 1, width=96)
    untrained = AsymFlux2KleinPipeline.from_pretrained(made.base, subspace=made.subspace)
    untrained.set_progress_bar_config(disable=True)
    assert untrained("picture 1", **size, num_inference_steps=1, output_type="pt").images.shape == (1, 3, 64, 96)
    sampler.pipeline.save_pretrained(tmp_path / "merged")
    assert read_patch_size(str(tmp_path / "merged")) == read_patch_size(made.base) == made.patch_size


def test_sizes_to_sample_are_checked_by_the_bases_own_patch(made, tmp_path):
    settings = {"base": made.base, "adapter": str(tmp_path), "prompts": "a"}
    check(validate(SampleSettings, {**settings, "height": 3 * made.patch_size}))
    with pytest.raises(ConfigError, match=f"height={made.patch_size + 2}: must be a multiple of {made.patch_size}"):
        check(validate(SampleSettings, {**settings, "height": made.patch_size + 2}))


def test_settings_follow_the_base(made, tmp_path):
    """What stands in the settings, and so in identities and manifests, is the base's own number."""
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"curated": "c", "encoded": "e", "basis": "b", "base": made.base}))
    settings = load_config(FinetuneSettings, str(config), [])
    assert settings.pixels.patch_size == made.patch_size
    assert settings == load_config(FinetuneSettings, str(config), [f"pixels.patch_size={made.patch_size}"])
    assert load_config(FinetuneSettings, str(config), ["pixels.patch_size=2"]).pixels.patch_size == 2
    planned = plan(settings)
    assert planned.image_tokens == (1024 // made.patch_size) ** 2
    assert planned.basis == 3 * made.patch_size**2 * made.width + 1
    basis = validate(BasisSettings, {"curated": "c", "base": made.base})
    assert (basis.patch_size, basis.pca_rank) == (made.patch_size, made.width)
    assert validate(BasisSettings, {"curated": "c", "base": made.base, "pca_rank": 5}).pca_rank == 5
    BASIS.check(basis)
    with pytest.raises(ConfigError, match=f"patch_size=2: .* represent {made.patch_size}x{made.patch_size} pixels"):
        BASIS.check(validate(BasisSettings, {"curated": "c", "base": made.base, "patch_size": 2}))


def test_a_basis_of_stored_latents_has_the_patch_of_the_base_that_made_them(made):
    """Without `base` the patch is a plain setting; what the latents were made with is in their manifest."""
    ids = {"curated": "c"}
    encoded = Artifact("e", {"id": "e", "inputs": ids, "config": {"base": made.base, "latents": "stored"}})
    inputs = {"curated": Artifact("c", {"id": "c"}), "encoded": encoded}
    fits, small = ({"curated": "c", "encoded": "e", "patch_size": side} for side in (made.patch_size, 2))
    BASIS.check_inputs(validate(BasisSettings, fits), inputs)
    with pytest.raises(ConfigError, match=f"patch_size=2: .*; set {made.patch_size}"):
        BASIS.check_inputs(validate(BasisSettings, small), inputs)


def test_settings_of_a_base_that_is_elsewhere_are_the_published_ones():
    tree = {"curated": "c", "encoded": "e", "basis": "b", "base": "/nowhere/klein"}
    assert validate(FinetuneSettings, tree).pixels.patch_size == 16
    basis = validate(BasisSettings, {"curated": "c"})
    assert (basis.patch_size, basis.pca_rank) == (16, 128)


def test_a_base_without_its_autoencoder(tiny_base, tmp_path):
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    shutil.rmtree(base / "vae")
    tree = {"curated": "c", "encoded": "e", "basis": "b", "base": str(base)}
    assert validate(FinetuneSettings, tree).pixels.patch_size == 16
    assert validate(FinetuneSettings, {**tree, "pixels": {"patch_size": 8}}).pixels.patch_size == 8
    assert read_patch_size(str(base)) is None  # the adapter tells
    (base / "vae").mkdir()
    with pytest.raises(ConfigError, match="pixels.patch_size: not given, and base=.*no vae/config.json"):
        validate(FinetuneSettings, tree)
