import pytest
import torch
from torch import nn

from asymflow.models.l2p import Detailer, L2pModel
from asymflow.oklab import RELEASED
from asymflow.patches import patchify
from asymflow.subspace import Subspace


@pytest.fixture
def make(tiny_transformer):
    def make_model(**options) -> L2pModel:
        torch.manual_seed(0)
        A = torch.linalg.qr(torch.randn(768, 128)).Q
        return L2pModel.from_latent(tiny_transformer(8), Subspace(A, 1.7, "channel_first", RELEASED, {}), **options)

    return make_model


def detailer(patch_size: int = 4, features: int = 5, channels: int = 2) -> Detailer:
    torch.manual_seed(0)
    return Detailer(patch_size, features, channels)


def test_the_detailer_has_the_papers_channels():
    layers = {
        name: (m.in_channels, m.out_channels)
        for name, m in detailer(16, 3840, 64).named_modules()
        if isinstance(m, nn.Conv2d)
    }
    assert [layers[f"encode.{i}"] for i in range(4)] == [(3, 64), (64, 128), (128, 256), (256, 512)]
    assert layers["fuse"] == (512 + 3840, 512)
    assert [layers[f"decode.{i}"][1] for i in (3, 2, 1, 0)] == [256, 128, 64, 64]
    assert layers["last"] == (64, 3)


def test_the_velocity_of_a_pixel_depends_on_its_surroundings_alone_and_on_their_features():
    model, generator = detailer(), torch.Generator().manual_seed(1)
    images = torch.randn(1, 3, 64, 64, generator=generator)
    features = torch.randn(1, 5, 16, 16, generator=generator)
    with torch.no_grad():
        u = model(images, features)
        other = features.clone()
        other[:, :, 0, 0] += 1
        changed = (model(images, other) - u).abs().amax(1)[0]
    assert u.shape == images.shape
    assert changed[0, 0] > 0
    assert (changed[24:] == 0).all()
    assert (changed[:, 24:] == 0).all()


def test_new_layers_and_the_outer_blocks_alone_differ_from_the_base(make, tiny_transformer):
    model, base = make(blocks=1, channels=4), dict(tiny_transformer(8).named_parameters())
    new = {"x_embedder.weight"}
    for name, parameter in model.trainable().items():
        own = name.removeprefix("transformer.")
        if own not in new and not own.startswith("detailer."):
            assert torch.equal(parameter, base[own]), name
    assert model.transformer.x_embedder.weight.shape == (32, 768)
    assert not any(name.startswith("transformer.proj_out") for name, _ in model.named_parameters())
    assert model.head_sizes == {"blocks": 1, "channels": 4}


def test_the_noise_level_is_the_source_models_own(make):
    model, seen = make(blocks=1, channels=4), []
    model.transformer.register_forward_pre_hook(lambda *args: seen.append(args[2]["timestep"]), with_kwargs=True)
    sigma = torch.tensor([0.3, 0.9])
    with torch.no_grad():
        model(torch.randn(2, 3, 32, 48), sigma, torch.randn(2, 5, 8))
    assert torch.equal(seen[0], sigma)


def test_reference_images_are_tokens_in_the_scale_of_the_noisy_image(make):
    model, seen = make(blocks=1, channels=4), []
    model.transformer.x_embedder.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    generator = torch.Generator().manual_seed(0)
    x_t, references = (torch.randn(*shape, generator=generator) for shape in ((1, 3, 32, 48), (1, 2, 3, 32, 48)))
    with torch.no_grad():
        u = model(x_t, torch.tensor([0.4]), torch.randn(1, 5, 8, generator=generator), references=references)
    assert u.shape == x_t.shape
    expected = [patchify(image, 16, "channel_first") for image in (x_t, references[:, 0], references[:, 1])]
    assert torch.equal(seen[0].float(), torch.cat(expected, dim=1))
