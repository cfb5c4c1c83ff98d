import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from asymflow.losses import repa_loss
from asymflow.models.dinov2 import DinoFeatures
from asymflow.models.jit import JiTConfig, PixelJiT
from asymflow.objectives import PretrainObjective
from asymflow.srgb import SrgbSpace
from asymflow.subspace import Subspace, random_basis

CONFIG = JiTConfig(width=24, depth=3, heads=2, bottleneck=16, context_from=1, context_tokens=2, classes=4)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    """A folder with a tiny DINOv2 of the real class."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder") / "dinov2"
    config = Dinov2Config(hidden_size=20, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    return str(folder)


def batch(pictures=3, side=32):
    generator = torch.Generator().manual_seed(0)
    return dict(
        images=torch.rand(pictures, 3, side, side, generator=generator) * 2 - 1,
        noise=torch.randn(pictures, 3, side, side, generator=generator),
        sigma=torch.tensor([0.01, 0.5, 0.9])[:pictures],
        weight=torch.tensor([1.5, 1.5, 0.0])[:pictures],
        labels=torch.tensor([0, 3, 4])[:pictures],
    )


def model():
    torch.manual_seed(0)
    found = PixelJiT(CONFIG, Subspace(random_basis(768, 8).float(), 1.0, "channel_last", SrgbSpace()))
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return found


def test_loss_is_the_weighted_velocity_error():
    student, given = model(), batch()
    loss, terms = PretrainObjective(student)(**given)
    assert terms.keys() == {"loss", "flow_matching"} and not terms["loss"].requires_grad
    torch.testing.assert_close(float(loss), float((given["weight"] * terms["loss"]).mean()))
    above = given["sigma"] > 0.05  # where no floor holds, the target is u
    sigma = given["sigma"][:, None, None, None]
    x_t = (1 - sigma) * given["images"] + sigma * given["noise"]
    u_hat = student(x_t, given["sigma"], given["labels"], sigma_floor=5e-2)
    expected = (u_hat - (given["noise"] - given["images"])).square().mean((1, 2, 3))
    torch.testing.assert_close(terms["loss"][above], expected[above].detach())


def test_features_are_those_of_the_resized_image_one_a_patch(dinov2):
    """Against transformers' own image processor, which takes pictures of 8 bits."""
    from transformers import BitImageProcessor

    encoder = DinoFeatures(dinov2)
    coarse = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))  # smooth, so that nothing overshoots
    pixels = (torch.nn.functional.interpolate(coarse, 32, mode="bilinear") * 255).round().to(torch.uint8)
    found = encoder(pixels.float() / 127.5 - 1, (2, 2))
    assert found.shape == (2, 4, 20) and encoder.width == 20
    processor = BitImageProcessor(
        size={"height": 28, "width": 28}, do_center_crop=False, image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    prepared = processor(list(pixels), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = encoder.model(pixel_values=prepared).last_hidden_state[:, 1:]
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)  # the processor rounds to 8 bits once more
    assert not any(p.requires_grad for p in encoder.parameters())


def test_overshoot_of_the_resize_is_clamped(dinov2):
    """Bicubic: black beside white goes below 0 and above 1, which no image that the encoder was trained on has."""
    from asymflow.models.dinov2 import tokens_of

    seen = []

    class Looking:
        config = Dinov2Config.from_pretrained(dinov2)

        def __call__(self, pixel_values):
            seen.append(pixel_values)
            return Dinov2Model(self.config)(pixel_values)

    images = torch.full((1, 3, 32, 32), -1.0)
    images[..., 16:] = 1.0
    tokens_of(Looking(), images, (2, 2))
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = seen[0] * std + mean
    assert float(pixels.min()) == pytest.approx(0, abs=1e-6) and float(pixels.max()) == pytest.approx(1, abs=1e-6)


def test_alignment_is_added_at_its_weight_and_teaches_the_first_blocks_alone(dinov2):
    student, encoder, given = model(), DinoFeatures(dinov2), batch()
    student.add_projector(block=1, features=encoder.width, width=12)
    objective = PretrainObjective(student, encoder=encoder, repa_weight=0.5)
    loss, terms = objective(**given)
    torch.testing.assert_close(terms["loss"], terms["flow_matching"] + 0.5 * terms["repa"])
    assert ((terms["repa"] >= 0) & (terms["repa"] <= 2)).all()
    assert "encoder" not in " ".join(name for name, _ in objective.named_parameters())
    targets = encoder(given["images"], (2, 2))
    assert float(repa_loss(targets, targets)) == pytest.approx(0, abs=1e-6)
    loss.backward()
    assert student.projector[0].weight.grad.abs().sum() > 0
