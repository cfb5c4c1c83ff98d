"""One suite for all families of base models: what the method needs of a base, on tiny models of the real classes."""

import copy
import json
import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from dequantized import SCHEMES, copy_in_full
from tiny_families import FAMILIES, TinyFamily
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from asymflow.adapters import SamplingDefaults, kind_of, read_adapter, restore, save_adapter
from asymflow.models.backbone import Backbone
from asymflow.models.ddt import DdtFlux2
from asymflow.models.l2p import L2pModel
from asymflow.models.latent import MODULES, LatentFamily, family_of, load_transformer, published_model
from asymflow.models.lifted import LatentModel, PixelModel
from asymflow.models.network import NF4_BLOCK
from asymflow.models.text import PADDINGS, pad_embeddings
from asymflow.oklab import RELEASED
from asymflow.parameterization import lift, recover_u
from asymflow.patches import patchify, unpatchify
from asymflow.schedule import calibrate
from asymflow.subspace import Subspace
from pipelines.core.base_models import check_padding, read_geometry
from pipelines.core.config import ConfigError
from pipelines.sample.parameters import SamplingParameters
from pipelines.sample.sampler import load_sampler, open_sampler
from pipelines.train.finetune.batches import Batch
from pipelines.train.finetune.config import FinetuneSettings, Loss, Perceptual
from pipelines.train.finetune.flops import step_flops
from pipelines.train.finetune.memory import count_values
from pipelines.train.finetune.model import adapt
from pipelines.train.finetune.plan import plan, trained_groups
from pipelines.train.finetune.task import blank_batch, make_objective, parameter_groups

HEIGHT, WIDTH = 32, 48
CAPTIONS = ["a red sun", "two suns over a hill, and a third one behind it"]
LORA = 2


class Made(NamedTuple):
    tiny: TinyFamily
    folder: str
    family: LatentFamily
    backbone: Backbone
    subspace: Subspace
    grid: tuple[int, int]


@pytest.fixture(scope="module", params=FAMILIES)
def made(request, tmp_path_factory) -> Made:
    tiny, folder = FAMILIES[request.param], tmp_path_factory.mktemp(request.param) / "base"
    tiny.make(folder)
    family = family_of(folder)
    side, width = family.read_geometry(folder)
    A = torch.linalg.qr(torch.randn(3 * side**2, width, generator=torch.Generator().manual_seed(0))).Q
    subspace = Subspace(A, 1.7, "channel_first", RELEASED, {})
    return Made(tiny, str(folder), family, family.backbone, subspace, (HEIGHT // side, WIDTH // side))


def transformer_of(made: Made) -> Any:
    return load_transformer(made.folder, torch.float32).eval()


def lifted(made: Made, layout: str = "channel_first") -> PixelModel:
    subspace = made.subspace
    if layout != subspace.layout:
        order = torch.arange(float(subspace.patch_dim)).view(1, 3, subspace.patch_size, subspace.patch_size)
        order = patchify(order, subspace.patch_size, layout).flatten().long()
        subspace = Subspace(subspace.A[order], subspace.s, layout, RELEASED, {})
    return PixelModel.from_latent(transformer_of(made), subspace).eval()


def trained(made: Made, **options: Any) -> PixelModel:
    """With LoRA, and all trained values away from where they start."""
    model = lifted(made, **options)
    torch.manual_seed(0)
    model.add_lora(LORA, dropout=0.0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


class Inputs(NamedTuple):
    x_t: Tensor
    sigma: Tensor
    text: Tensor
    mask: Tensor


def inputs(made: Made) -> Inputs:
    generator = torch.Generator().manual_seed(2)
    width = transformer_of(made).get_submodule(made.backbone.text_input).in_features
    texts = [torch.randn(length, width, generator=generator) for length in (3, 7)]
    padded, mask = pad_embeddings(texts)
    return Inputs(torch.randn(2, 3, HEIGHT, WIDTH, generator=generator), torch.tensor([0.15, 0.8]), padded, mask)


def assert_close(actual: Tensor, expected: Tensor, relative: float = 2e-5) -> None:
    assert expected.abs().max() > 0
    assert (actual - expected).abs().max() <= relative * expected.abs().max()


def test_each_family_has_a_tiny_base():
    assert len(FAMILIES) == len(MODULES)


def test_geometry_read_from_a_folder_agrees_with_its_parts(made):
    side, width = read_geometry(made.folder)
    assert all((Path(made.folder) / part).is_dir() for part in (*made.family.image_parts, *made.family.text_parts))
    images = made.family.load_image_encoder(made.folder, "cpu", torch.float32)
    text = made.family.load_text_encoder(made.folder, "cpu", torch.float32, 512)
    assert (images.pixels_per_token, images.token_width) == (side, width)
    transformer = transformer_of(made)
    assert made.backbone.token_width(transformer.config) == width == made.subspace.rank
    assert transformer.get_submodule(made.backbone.first).in_features == width
    assert transformer.get_submodule(made.backbone.text_input).in_features == text.width
    assert all(made.backbone.trained)
    assert len(set(made.backbone.trained)) == 3


def test_an_embedding_depends_on_its_own_caption_alone(made):
    encoder = made.family.load_text_encoder(made.folder, "cpu", torch.float32, 512)
    together = encoder.encode([*CAPTIONS, ""])
    for caption, embedding in zip([*CAPTIONS, ""], together, strict=True):
        (alone,) = encoder.encode([caption])
        assert embedding.shape == alone.shape == (len(alone), encoder.width)
        assert len(alone) > 0
        torch.testing.assert_close(embedding, alone, rtol=1e-3, atol=1e-4)
    assert len(together[0]) < len(encoder.encode([4 * CAPTIONS[1]])[0])
    short = made.family.load_text_encoder(made.folder, "cpu", torch.float32, made.tiny.cut).encode(CAPTIONS[1:])[0]
    assert len(short) == made.tiny.cut < len(together[1])


def test_a_padding_that_the_family_does_not_know_is_refused(made):
    assert made.tiny.padding in made.family.paddings
    for padding in PADDINGS:
        load = partial(made.family.load_text_encoder, made.folder, "cpu", torch.float32, 512, padding)
        if padding in made.family.paddings:
            check_padding(made.folder, padding)
            (embedding,) = load().encode(CAPTIONS[:1])
            assert (len(embedding) == 512) == (padding == "max_length")
        else:
            with pytest.raises(ConfigError, match=f"text_padding={padding}: not supported"):
                check_padding(made.folder, padding)
            with pytest.raises(ValueError, match=f"padding is '{padding}'"):
                load()


def test_a_kind_that_the_family_does_not_have_is_refused(made):
    settings = settings_of(made.folder, "ddt")
    if "ddt" in made.backbone.adapter_classes:
        assert plan(settings).values.total_trained > 0
        return
    with pytest.raises(ConfigError, match="model=ddt: not supported"):
        plan(settings)
    with pytest.raises(ValueError, match="there is no DDT head"):
        DdtFlux2.from_latent(transformer_of(made), made.subspace, 1, 2, 8)


def test_images_are_encoded_as_decoding_undoes_it(made):
    encoder = made.family.load_image_encoder(made.folder, "cpu", torch.float32)
    images = torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens = encoder.encode(images)
    assert tokens.shape == (2, math.prod(made.grid), encoder.token_width)
    vae = made.tiny.stock(made.folder).vae
    with torch.no_grad():
        expected = made.tiny.reconstruct(vae, images)
    decoded = encoder.decode(tokens, made.grid)
    assert decoded.shape == images.shape
    assert decoded.dtype == torch.float32
    torch.testing.assert_close(decoded, expected.clamp(-1, 1), rtol=0, atol=2e-5)


def test_samples_equal_the_stock_pipelines(made):
    """Prompt, embeddings, positions, direction of time, packing, shift and scale: any that differs shows here."""
    stock = made.tiny.stock(made.folder)
    stock.set_progress_bar_config(disable=True)
    noises: list[Tensor] = []
    prepare = stock.prepare_latents
    stock.prepare_latents = lambda *args, **options: noises.append(prepare(*args, **options)) or noises[0]
    options = {"height": HEIGHT, "width": WIDTH, "num_inference_steps": 3, "output_type": "pt"}
    generator = torch.Generator().manual_seed(3)
    expected = stock(prompt=CAPTIONS[1], generator=generator, **options, **made.tiny.unguided).images

    noise = noises[0][0] if isinstance(noises[0], tuple) else noises[0]
    text = made.family.load_text_encoder(made.folder, "cpu", torch.float32, 512, made.tiny.padding)
    padded, mask = pad_embeddings(text.encode(CAPTIONS[1:]))
    z_t = made.backbone.pack(noise, 2) if noise.ndim == 4 else noise
    sigmas, transformer = stock.scheduler.sigmas, transformer_of(made)
    with torch.no_grad():
        for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
            u = made.backbone.run(transformer, z_t, sigma[None], padded, made.grid, mask)
            z_t = z_t + (after - sigma) * u
    encoder = made.family.load_image_encoder(made.folder, "cpu", torch.float32)
    torch.testing.assert_close((encoder.decode(z_t, made.grid) + 1) / 2, expected, rtol=0, atol=2e-4)


def test_tokens_are_packed_in_one_order(made):
    side = 2
    latents = torch.randn(2, made.subspace.rank // side**2, 4, 6)
    tokens = made.backbone.pack(latents, side)
    assert tokens.shape == (2, 6, made.subspace.rank)
    model, (_, sigma, text, mask) = lifted(made), inputs(made)
    noise = torch.randn(2, 6, made.subspace.patch_dim)
    packed = model.teacher_x_0_low(tokens, noise, sigma, text, (2, 3), mask)
    assert torch.equal(model.teacher_x_0_low(latents, noise, sigma, text, text_mask=mask), packed)


@pytest.mark.parametrize("layout", ["channel_first", "channel_last"])
def test_the_lifted_model_is_the_latent_model_at_first(made, layout):
    """Eq. 6: the network's output is A u_z(A^T k x_t, tau), whatever lies outside the subspace."""
    model, (x_t, sigma, text, mask) = lifted(made, layout), inputs(made)
    tokens = patchify(x_t, model.patch_size, layout)
    tau, k = calibrate(sigma, model.s)
    z_tau = (k[:, None, None] * tokens) @ model.A
    with torch.no_grad():
        u_z = made.backbone.run(transformer_of(made), z_tau, tau, text, made.grid, mask)
        u = recover_u(lift(u_z, model.A), tokens, sigma, model.A, model.s)
        assert_close(model(x_t, sigma, text, mask), unpatchify(u, HEIGHT, WIDTH, model.patch_size, layout=layout))
        model.add_lora(LORA)
        model.eval()
        assert_close(model(x_t, sigma, text, mask), unpatchify(u, HEIGHT, WIDTH, model.patch_size, layout=layout))


def test_theorem_1_the_pixel_path_projects_to_the_latent_path(made):
    """A^T (k x_t^L) = z_tau for x_0^L = s A z_0 and noise whose projection is the latent noise; and the clean
    prediction of the lifted model, inside the subspace, is the lifted clean prediction of the latent model."""
    model, (_, sigma, text, mask) = lifted(made), inputs(made)
    generator = torch.Generator().manual_seed(4)
    z_0 = torch.randn(2, math.prod(made.grid), made.subspace.rank, generator=generator)
    noise = torch.randn(2, math.prod(made.grid), made.subspace.patch_dim, generator=generator)
    t = sigma[:, None, None]
    x_t = (1 - t) * lift(z_0, model.A, model.s) + t * noise
    tau, k = (value[:, None, None] for value in calibrate(sigma, model.s))
    z_tau = (1 - tau) * z_0 + tau * (noise @ model.A)
    torch.testing.assert_close(k * x_t @ model.A, z_tau, rtol=1e-4, atol=1e-5)
    images = unpatchify(x_t, HEIGHT, WIDTH, model.patch_size)
    with torch.no_grad():
        x_0_hat = x_t - t * patchify(model(images, sigma, text, mask), model.patch_size)
        u_z = made.backbone.run(transformer_of(made), z_tau, tau.flatten(), text, made.grid, mask)
    assert_close(x_0_hat @ model.A, model.s * (z_tau - tau * u_z), 1e-4)


def test_the_teacher_stays_the_base_while_the_student_trains(made):
    model, (x_t, sigma, text, mask) = trained(made), inputs(made)
    tokens = torch.randn(2, math.prod(made.grid), made.subspace.rank)
    with torch.no_grad():
        before = model(x_t, sigma, text, mask)
        with model.teacher_view() as teacher:
            u_z = made.backbone.run(teacher, tokens, sigma, text, made.grid, mask)
        expected = made.backbone.run(transformer_of(made), tokens, sigma, text, made.grid, mask)
        assert torch.equal(u_z, expected)
        after = model(x_t, sigma, text, mask)
        untrained = lifted(made)(x_t, sigma, text, mask)
    assert torch.equal(before, after)
    assert (before - untrained).abs().max() > 1e-3 * untrained.abs().max()


def test_one_copy_of_the_base_is_in_memory(made):
    base = sum(p.numel() for p in transformer_of(made).parameters())
    model = trained(made)
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    assert sum(storages.values()) == 4 * (base + sum(p.numel() for p in model.trainable().values()))


def test_gradients_reach_exactly_the_trained_modules(made):
    model, (x_t, sigma, text, mask) = trained(made), inputs(made)
    names = {name.removeprefix("transformer.") for name in model.trainable()}
    assert {name for name in names if ".lora_" not in name} == made.tiny.wholes
    assert {name.split(".lora_")[0] for name in names if ".lora_" in name} == made.tiny.lora
    model(x_t, sigma, text, mask).square().mean().backward()
    with_gradient = {n.removeprefix("transformer.") for n, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == names
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in model.trainable().values())
    last, rest = [group["lr"] for group in parameter_groups(model, FinetuneSettings.model_fields["optim"].default)]
    assert sorted((last, rest)) == [1e-4, 1e-3]


def shallow(made: Made) -> L2pModel:
    """L2P with one trained block at each end and, if the family has such, a frozen one between them."""
    config = dict(transformer_of(made).config)
    config |= {name: 3 for name in made.tiny.depths}
    torch.manual_seed(0)
    return L2pModel.from_latent(type(transformer_of(made)).from_config(config), made.subspace, 1, 4)


def test_l2p_trains_the_outer_blocks_alone_and_its_teacher_is_the_base(made):
    model, (x_t, sigma, text, mask) = shallow(made), inputs(made)
    config, backbone = model.transformer.config, made.backbone
    ends = backbone.end_blocks(config, 1)
    lists = [model.transformer.get_submodule(name) for name in backbone.image_blocks]
    assert ends == (f"{backbone.image_blocks[0]}.0", f"{backbone.image_blocks[-1]}.{len(lists[-1]) - 1}")
    assert sum(map(len, lists)) > 2
    trained = {name.removeprefix("transformer.") for name in model.trainable()}
    outer = tuple(f"{name}." for name in (backbone.first, backbone.last_norm, *ends, "detailer"))
    assert all(name.startswith(outer) for name in trained)
    assert {name for name in outer if any(n.startswith(name) for n in trained)} == set(outer)
    left = {
        name
        for name, _ in model.transformer.named_parameters()
        if name.startswith(tuple(f"{end}." for end in ends)) and name not in trained
    }
    assert all(re.fullmatch(backbone.unused(config), name.rpartition(".")[0]) for name in left)
    with model.teacher_view() as teacher:
        names = {name for name, _ in teacher.named_parameters()}
        assert not names & {n.removeprefix("transformer.") for n in model.trainable()} - names
        assert not any(p.requires_grad for p in teacher.parameters())
    model(x_t, sigma, text, mask).square().mean().backward()
    with_gradient = {n.removeprefix("transformer.") for n, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == trained
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in model.trainable().values())


def test_l2p_in_half_precision_with_checkpointing_keeps_float32_weights(made):
    model, (x_t, sigma, text, mask) = shallow(made), inputs(made)
    whole = model(x_t, sigma, text, mask)
    whole.square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.trainable().items()}
    model.zero_grad()
    model.enable_gradient_checkpointing()
    model.train()(x_t, sigma, text, mask).square().mean().backward()
    for name, parameter in model.trainable().items():
        assert_close(parameter.grad, gradients[name], 1e-4)
    model.set_precision(torch.bfloat16)
    u = model(x_t, sigma, text, mask)
    u.square().mean().backward()
    assert u.dtype == torch.float32
    assert model.dtype == torch.bfloat16
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.trainable().values())
    assert (u - whole).norm() < 0.1 * whole.norm()


@pytest.mark.parametrize("layout", ["channel_first", "channel_last"])
def test_an_l2p_model_is_saved_loaded_and_sampled_from(made, layout, tmp_path):
    subspace = lifted(made, layout).subspace
    torch.manual_seed(0)
    model = L2pModel.from_latent(transformer_of(made), subspace, 1, 4).eval()
    x_t, sigma, text, mask = inputs(made)
    save_adapter(model, tmp_path, SamplingDefaults(HEIGHT, WIDTH, 2, 2.0, 3.0, made.tiny.padding))
    tensors, config = read_adapter(tmp_path)
    assert kind_of(config) == "l2p"
    assert config["head"] == {"blocks": 1, "channels": 4}
    again = restore(transformer_of(made), tmp_path)
    with torch.no_grad():
        assert_close(again(x_t, sigma, text, mask), model(x_t, sigma, text, mask), 5e-3)  # stored in float16
    if layout == "channel_first":
        parameters = SamplingParameters(height=HEIGHT, width=WIDTH, steps=2, guidance=2.0, shift=3.0)
        both = open_sampler(made.folder, str(tmp_path))
        images = {name: getattr(both, name)(CAPTIONS, [3, 4], parameters) for name in ("pixel", "latent")}
        assert all(found.shape == (2, 3, HEIGHT, WIDTH) and torch.isfinite(found).all() for found in images.values())
        sampler = load_sampler("trained", made.folder, tmp_path, subspace, both.defaults, "cpu")
        torch.testing.assert_close(sampler(CAPTIONS, [3, 4], parameters), images["pixel"], rtol=0, atol=1e-3)
        base = load_sampler("latent", made.folder, None, subspace, both.defaults, "cpu")
        torch.testing.assert_close(base(CAPTIONS, [3, 4], parameters), images["latent"], rtol=0, atol=1e-3)


def test_more_trained_blocks_than_the_transformer_has_are_refused(made):
    l2p = {"l2p": {"blocks": 9}, "lora": None}
    message = r"model=l2p, l2p.blocks=9: the transformer has \d blocks; allowed at each end: \d"
    with pytest.raises(ConfigError, match=message):
        plan(settings_of(made.folder, "l2p", **l2p))
    with pytest.raises(ValueError, match="blocks; allowed at each end"):
        L2pModel.from_latent(transformer_of(made), made.subspace, 9)


def test_a_masked_batch_equals_each_row_alone(made):
    model, (x_t, sigma, text, mask) = trained(made), inputs(made)
    with torch.no_grad():
        together = model(x_t, sigma, text, mask)
        for row, length in enumerate(mask.sum(1)):
            alone = model(x_t[row : row + 1], sigma[row : row + 1], text[row : row + 1, :length])
            assert_close(together[row : row + 1], alone, 1e-4)
    with pytest.raises(ValueError, match="do not fill"):
        made.backbone.run(model.transformer, torch.randn(1, 6, made.subspace.patch_dim), sigma[:1], text[:1], (2, 2))


def test_gradient_checkpointing_changes_nothing(made):
    gradients = []
    for checkpointing in (False, True):
        model, (x_t, sigma, text, mask) = trained(made).train(), inputs(made)
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(x_t, sigma, text, mask).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.trainable().values()]))
    assert_close(gradients[1], gradients[0])


def test_in_half_precision_trained_values_stay_float32(made):
    model, (x_t, sigma, text, mask) = trained(made), inputs(made)
    with torch.no_grad():
        whole = model(x_t, sigma, text, mask)
    model.set_precision(torch.bfloat16)
    u = model(x_t, sigma, text, mask)
    u.square().mean().backward()
    assert u.dtype == torch.float32
    assert model.dtype == torch.bfloat16
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.trainable().values())
    assert (u - whole).norm() < 0.1 * whole.norm()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_quantized_base_gives_the_velocities_of_its_dequantized_weights(made, scheme):
    config = {**transformer_of(made).config, **made.tiny.wide}
    torch.manual_seed(0)
    model = PixelModel.from_latent(type(transformer_of(made)).from_config(config), made.subspace).train()
    model.add_lora(LORA, dropout=0.0)
    x_t, sigma, text, mask = inputs(made)
    rounded, names = copy.deepcopy(model), model.frozen_linears()
    with torch.no_grad():
        whole = model(x_t, sigma, text, mask)
    model.quantize_base(scheme=scheme)
    for name in names:
        layers = (m.transformer.get_submodule(name) for m in (model, rounded))
        copy_in_full(next(layers), scheme, next(layers))
    with torch.no_grad():
        expected = rounded(x_t, sigma, text, mask)
    u = model(x_t, sigma, text, mask)
    u.square().mean().backward()
    assert_close(u, expected)
    least = 1e-4 if scheme == "nf4" else 1e-5
    assert least * whole.norm() < (u - whole).norm() < 0.2 * whole.norm()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == model.trainable().keys()


def test_every_loss_trains_and_the_latent_baseline_starts_as_the_base(made):
    encoder = made.family.load_image_encoder(made.folder, "cpu", torch.float32)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    _, sigma, text, mask = inputs(made)
    batch = Batch(
        images=images, z_0=encoder.encode(images), text=text, text_mask=mask, noise=torch.randn(images.shape),
        sigma=sigma, weight=torch.ones(2), keys=["a", "b"], key_sums=torch.ones(2).double(),
    )  # fmt: skip
    model = trained(made)
    for loss in (Loss(kind="flow_matching"), Loss(perceptual=Perceptual(net="squeeze", weights="random"))):
        model.zero_grad()
        objective = make_objective(model, loss)
        objective(**batch.inputs())[0].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.trainable().values())
        assert torch.isfinite(objective(**blank_batch(model, 1).inputs())[0])
    latent = LatentModel.from_latent(transformer_of(made), made.subspace).eval()
    latent.add_lora(LORA)
    with torch.no_grad():
        expected = made.backbone.run(transformer_of(made), batch.z_0, sigma, text, (4, 4), mask)
        assert torch.equal(latent(batch.z_0, sigma, text, mask), expected)
    objective = make_objective(latent, Loss(kind="flow_matching"))
    objective(**batch.inputs())[0].backward()


@pytest.mark.parametrize("layout", ["channel_first", "channel_last"])
def test_an_adapter_is_saved_and_loaded(made, layout, tmp_path):
    model, (x_t, sigma, text, mask) = trained(made, layout=layout), inputs(made)
    save_adapter(model, tmp_path)
    tensors, config = read_adapter(tmp_path)
    assert kind_of(config) == "asymflow"
    assert config["_class_name"] == made.backbone.adapter_classes["asymflow"]
    assert json.loads((tmp_path / "config.json").read_text()) == config
    assert all(not name.startswith("transformer.") for name in tensors)
    again = restore(transformer_of(made), tmp_path)
    with torch.no_grad():
        expected = model(x_t, sigma, text, mask)
        assert_close(again(x_t, sigma, text, mask), expected, 5e-3)  # stored in float16
    save_adapter(again, tmp_path / "again")
    same = {name: torch.equal(tensor, tensors[name]) for name, tensor in read_adapter(tmp_path / "again")[0].items()}
    assert same.keys() == tensors.keys()
    assert all(same.values())
    latent = LatentModel.from_latent(transformer_of(made), made.subspace).eval()
    latent.add_lora(LORA)
    save_adapter(latent, tmp_path / "latent")
    assert kind_of(read_adapter(tmp_path / "latent")[1]) == "latent"
    assert isinstance(restore(transformer_of(made), tmp_path / "latent", made.subspace), LatentModel)


def test_images_are_sampled_end_to_end(made, tmp_path):
    defaults = SamplingDefaults(HEIGHT, WIDTH, 2, 2.0, 3.0, made.tiny.padding)
    save_adapter(trained(made), tmp_path, defaults)
    both = open_sampler(made.folder, str(tmp_path))
    assert both.patch_size == made.subspace.patch_size
    assert both.defaults == defaults
    drawing = SamplingParameters(height=HEIGHT, width=WIDTH, steps=2, guidance=2.0, shift=3.0)
    images = {name: getattr(both, name)(CAPTIONS, [3, 4], drawing) for name in ("pixel", "latent")}
    for name, found in images.items():
        assert found.shape == (2, 3, HEIGHT, WIDTH), name
        assert torch.isfinite(found).all(), name
        assert found.abs().max() <= 1, name
    alone = {
        model: load_sampler(model, made.folder, tmp_path, made.subspace, defaults, "cpu")
        for model in ("trained", "lifted", "latent")
    }
    torch.testing.assert_close(alone["trained"](CAPTIONS, [3, 4], drawing), images["pixel"], rtol=0, atol=1e-3)
    torch.testing.assert_close(alone["latent"](CAPTIONS, [3, 4], drawing), images["latent"], rtol=0, atol=1e-3)
    assert (alone["lifted"](CAPTIONS, [3, 4], drawing) - images["pixel"]).abs().max() > 1e-3


def settings_of(base: str, model: str = "asymflow", **sections: Any) -> FinetuneSettings:
    loss = "variance_reduced" if model == "asymflow" else "flow_matching"
    lora = None if model == "l2p" else {"rank": LORA, "dropout": 0.0}
    given = {"loss": {"kind": loss, "perceptual": None}, "lora": lora, "l2p": {"blocks": 1, "channels": 4}, **sections}
    nowhere = {name: f"/nowhere/{name}" for name in ("curated", "encoded", "basis")}
    return FinetuneSettings.model_validate({**nowhere, "base": base, "model": model, **given})


@pytest.mark.parametrize("model", ["asymflow", "latent", "l2p"])
def test_plan_equals_the_model(made, model):
    settings = settings_of(made.folder, model)
    counted = count_values(adapt(settings, transformer_of(made), made.subspace))
    planned = plan(settings)
    assert trained_groups(planned.values, planned.config) == trained_groups(counted, planned.config)
    assert replace(planned.values, trained={}) == replace(counted, trained={})


@pytest.mark.parametrize("kind", ["asymflow", "l2p"])
def test_operations_of_a_step_are_those_that_torch_counts(made, kind):
    settings = settings_of(made.folder, kind, loss={"kind": "flow_matching"})
    config, model = plan(settings).config, adapt(settings, transformer_of(made), made.subspace)
    batch = Batch(
        images=torch.rand(2, 3, 128, 128) * 2 - 1,
        z_0=torch.randn(2, 64, made.subspace.rank),
        text=torch.randn(2, 32, model.text_width),
        text_mask=torch.ones(2, 32).bool(),
        noise=torch.randn(2, 3, 128, 128),
        sigma=torch.tensor([0.2, 0.7]),
        weight=torch.ones(2),
        keys=["a", "b"],
        key_sums=torch.ones(2).double(),
    )
    objective = make_objective(model.train(), settings.loss)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        objective(**batch.inputs())[0].backward()
    # addmm_ of the recovery, which torch does not count
    unseen = 2 * 2 * 64 * made.subspace.A.numel() if kind == "asymflow" else 0
    expected = step_flops(settings, config, 64, 32, images=2)
    assert counter.get_total_flops() + unseen == pytest.approx(expected, rel=0.02)


def kept_values(model: PixelModel, text_tokens: int) -> float:
    """Values that a forward pass over 64 image tokens keeps for the backward pass, by torch's own account."""
    own, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.randn(1, 3, 128, 128), torch.tensor([0.5]), torch.randn(1, text_tokens, model.text_width))
    return sum(storage.nbytes() for storage in kept.values()) / 4


@pytest.mark.parametrize("lora", [False, True])
def test_blocks_keep_as_many_values_as_estimated(made, lora):
    config = transformer_of(made).config
    for name, kind in made.tiny.depths.items():
        kept = []
        for more in (1, 2):
            transformer = type(transformer_of(made)).from_config({**config, name: config[name] + more})
            model = PixelModel.from_latent(transformer, made.subspace).train()
            if lora:
                model.add_lora(LORA, dropout=0.0)
            kept.append(kept_values(model.train(), 32))
        expected = made.backbone.block_memory(config, lora, False)[kind].kept
        assert (kept[1] - kept[0]) / (64 + 32) == pytest.approx(expected, rel=0.08), (name, expected)


def test_published_models_have_the_shapes_of_the_class(made):
    for name in made.tiny.published:
        model = published_model(f"/models/{name}")
        assert model == published_model(name)
        assert model.config["_class_name"] == made.backbone.transformer
        config = copy.deepcopy(dict(model.config))
        with torch.device("meta"):
            transformer = made.backbone.prepare(getattr(diffusers, config.pop("_class_name"))(**config))
        linears = {n: m for n, m in transformer.named_modules() if isinstance(m, torch.nn.Linear)}
        network = made.backbone.network(model.config)
        found = {layer.name: (layer.outputs, layer.inputs, layer.bias) for layer in network.linears}
        assert found == {n: (m.out_features, m.in_features, m.bias is not None) for n, m in linears.items()}
        plain = {n for n, m in linears.items() if n not in (*made.backbone.trained, made.backbone.text_input)}
        assert all(linears[n].in_features % NF4_BLOCK == 0 for n in plain)
        total = sum(p.numel() for p in transformer.parameters())
        assert sum(part.values for part in (*network.linears, *network.vectors)) == total
        assert model.geometry.token_width == made.backbone.token_width(model.config)
    assert set(made.tiny.published) == set(made.family.published)
