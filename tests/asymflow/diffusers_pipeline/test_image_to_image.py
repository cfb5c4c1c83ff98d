"""Image-to-image on the shipped toy."""

import numpy as np
import pytest
import torch
from PIL import Image
from toy_pipeline import PROMPTS, largest_difference, noise, seeded


def test_strength_0_returns_the_image(change, photograph):
    for image in (photograph, photograph.convert("L"), photograph.convert("P"), photograph.convert("RGBA")):
        (found,) = change(image=image, strength=0.0).images
        assert found.size == image.size
        assert found.tobytes() == image.convert(found.mode).tobytes()
    clear = Image.merge("RGBA", (*photograph.split(), photograph.getchannel("R")))
    assert change(image=clear, strength=0.0).images[0].tobytes() == clear.tobytes()
    values = change(image=photograph, strength=0.0, output_type="np").images[0]
    assert abs(values * 255 - np.asarray(photograph)).max() < 1e-3


@pytest.mark.parametrize("output_type", ["pil", "pt", "latent"])
def test_strength_1_is_text_to_image_with_the_same_seed(change, toy, embedded, output_type):
    image = Image.linear_gradient("L").resize((48, 32))
    (found,) = change(image=image, strength=1.0, generator=seeded(3), output_type=output_type).images
    plain = toy(**embedded, height=32, width=48, generator=seeded(3), output_type=output_type).images[0]
    assert np.array_equal(np.asarray(found), np.asarray(plain))


def test_strength_keeps_a_part_of_the_image(change, photograph):
    reference = np.asarray(photograph, float)
    found = [
        np.asarray(change(image=photograph, strength=strength, generator=seeded(), num_inference_steps=8).images[0])
        for strength in (0.13, 0.5, 1.0)
    ]
    distances = [np.abs(one - reference).mean() for one in found]
    assert found[0].shape == reference.shape  # also in a size that is not whole patches
    assert 0 < distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize(("strength", "expected"), [(0.01, 1), (0.25, 1), (0.26, 2), (0.5, 2), (1.0, 4)])
def test_strength_is_the_fraction_of_the_steps_that_are_left(change, photograph, strength, expected):
    seen = []
    change(
        image=photograph, strength=strength, num_inference_steps=4,
        callback_on_step_end=lambda pipeline, step, timestep, tensors: seen.append(step) or {},
    )  # fmt: skip
    assert seen == list(range(expected))


def test_size_prompts_and_references(change, photograph, toy):
    assert change(image=photograph, height=32, width=48).images[0].size == (48, 32)
    text = toy.encode_prompt(PROMPTS[:2])
    images = [photograph, photograph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    options = {"prompt_embeds": text, "output_type": "pt", "num_images_per_prompt": 2, "latents": noise(4, 24, 36)}
    found = change(image=images, **options).images
    alone = change(image=images[1], **{**options, "prompt_embeds": text[1:], "latents": noise(4, 24, 36)[2:]}).images
    assert found.shape == (4, 3, 22, 33)
    assert largest_difference(found[2:], alone) < 1e-4
    plain = change(image=photograph, latents=noise(1, 24, 36), output_type="pt").images
    other = Image.new("RGB", (64, 80), "green")
    with_reference = change(image=photograph, latents=noise(1, 24, 36), output_type="pt", image_reference=other).images
    assert largest_difference(plain, with_reference) > 1e-4


def test_a_transparent_image_keeps_its_transparency(change, photograph):
    clear = Image.merge("RGBA", (*photograph.split(), photograph.getchannel("R")))
    found = change(image=clear).images[0]
    assert found.mode == "RGBA"
    assert found.getchannel("A").tobytes() == clear.getchannel("A").tobytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": None}, "^image is missing"),
        ({"strength": 1.5}, r"^strength is 1.5; it must be a number in \[0, 1\]"),
        ({"strength": "much"}, "^strength is 'much'"),
        ({"height": 16}, "^width is missing"),
        ({"height": 18, "width": 16}, "18x16 is not a multiple of 4"),
        ({"image_reference": "fox.png"}, "^image_reference is 'fox.png'"),
        ({"image": [Image.new("RGB", (8, 8))] * 3}, "^image has 3 images for 1 prompts"),
        ({"latents": torch.zeros(1, 3, 4, 4)}, r"^latents are .*a tensor \(1, 3, 24, 36\)"),
        ({"num_inference_steps": 0}, "^num_inference_steps is 0"),
        ({"sigmas": [0.5, 0.7]}, "^sigmas is .*must fall"),
    ],
)
def test_bad_arguments_are_named(change, photograph, options, message):
    with pytest.raises(ValueError, match=message):
        change(**{"image": photograph, **options})


def test_an_unknown_argument_is_named(change, photograph):
    with pytest.raises(TypeError, match="unexpected keyword argument 'strenght'"):
        change(image=photograph, strenght=0.5)
