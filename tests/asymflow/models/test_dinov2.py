import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from asymflow.models.dinov2 import DinoFeatures


def test_features_are_those_of_the_resized_image_one_a_patch(dinov2):
    """Against transformers' own image processor, which takes pictures of 8 bits."""
    from transformers import BitImageProcessor

    encoder = DinoFeatures(dinov2)
    coarse = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))  # smooth, so that nothing overshoots
    pixels = (torch.nn.functional.interpolate(coarse, 32, mode="bilinear") * 255).round().to(torch.uint8)
    found = encoder(pixels.float() / 127.5 - 1, (2, 2))
    assert found.shape == (2, 4, 20)
    assert encoder.width == 20
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
    assert float(pixels.min()) == pytest.approx(0, abs=1e-6)
    assert float(pixels.max()) == pytest.approx(1, abs=1e-6)


def test_a_missing_encoder_names_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="hf download facebook/dinov2-base"):
        DinoFeatures(str(tmp_path))
