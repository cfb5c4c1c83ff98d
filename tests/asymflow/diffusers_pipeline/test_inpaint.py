"""Inpainting on the shipped toy: exact outside the mask."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from toy_pipeline import PROMPTS, largest_difference, noise, seeded

from asymflow.diffusers_pipeline import expand_canvas

MODES = ("RGB", "L", "P", "RGBA", "LA", "1", "CMYK", "PA")


def random_case(rng):
    """Image of any mode and size, hard mask of any shape, arguments."""
    width, height, mode = rng.randint(3, 70), rng.randint(3, 70), rng.choice(MODES)
    values = np.frombuffer(rng.randbytes(4 * width * height), np.uint8).reshape(height, width, 4)
    image = Image.fromarray(np.ascontiguousarray(values), "RGBA")
    image = image.convert("LA").convert("PA") if mode == "PA" else image.convert(mode)
    mask = Image.new("L", (width, height))
    for _ in range(rng.randint(1, 4)):
        x, y = sorted(rng.choices(range(width), k=2)), sorted(rng.choices(range(height), k=2))
        rng.choice((ImageDraw.Draw(mask).rectangle, ImageDraw.Draw(mask).ellipse))((x[0], y[0], x[1], y[1]), 255)
    options = rng.choice(({}, {"padding_mask_crop": rng.randint(0, 9)}, {"height": 24, "width": 32}))
    return image, mask, {**options, "strength": rng.choice((0.3, 0.5)), "generator": seeded(rng.randint(0, 99))}


def test_pixels_outside_of_50_random_masks_are_the_images(inpaint):
    rng, sampled = random.Random(0), 0
    for case in range(50):
        image, mask, options = random_case(rng)
        written = io.BytesIO()
        inpaint(image=image, mask_image=mask, **options).images[0].save(written, "PNG")
        found = Image.open(written)
        assert found.size == image.size, case
        assert found.mode == ("RGBA" if image.has_transparency_data else "RGB"), case
        differs = (np.asarray(found) != np.asarray(image.convert(found.mode))).any(axis=-1)
        assert not differs[np.asarray(mask) == 0].any(), (case, image.mode, image.size, options)
        sampled += differs.sum() / max((np.asarray(mask) > 0).sum(), 1)
    assert sampled > 45  # of 50: almost all pixels inside


def test_a_full_mask_is_text_to_image_and_strength_0_or_an_empty_mask_the_image(inpaint, toy, embedded, photograph):
    image, full = photograph.resize((48, 32)), Image.new("L", (48, 32), 255)
    (found,) = inpaint(image=image, mask_image=full, strength=1.0, generator=seeded(1)).images
    plain = toy(**embedded, height=32, width=48, generator=seeded(1)).images[0]
    assert found.tobytes() == plain.tobytes()
    assert inpaint(image=image, mask_image=full, strength=0.0).images[0].tobytes() == image.tobytes()
    empty = Image.new("L", (48, 32))
    assert inpaint(image=image, mask_image=empty).images[0].tobytes() == image.tobytes()


def test_what_is_sampled_depends_on_what_is_kept(inpaint, photograph):
    mask = Image.new("L", photograph.size)
    mask.paste(255, (8, 8, 20, 16))
    inside = np.asarray(mask) == 255
    options = {"mask_image": mask, "strength": 1.0, "num_inference_steps": 4}
    found = [
        np.asarray(inpaint(image=image, generator=seeded(), **options).images[0])[inside]
        for image in (photograph, Image.new("RGB", photograph.size, "navy"))
    ]
    assert np.abs(found[0].astype(float) - found[1]).mean() > 1


def test_the_kept_part_of_the_noisy_image_stays_on_its_straight_line(inpaint, photograph):
    """So it is as noisy as the sampled part at every step, with every solver."""
    image, mask, start = photograph.resize((32, 24)), Image.new("L", (32, 24)), noise(1, 24, 32)
    mask.paste(255, (0, 0, 16, 24))
    seen = []

    def watch(pipeline, step, timestep, tensors):
        seen.append((timestep / 1000, tensors["latents"]))
        return {}

    options = {"mask_image": mask, "latents": start, "num_inference_steps": 5, "strength": 0.8}
    inpaint(image=image, callback_on_step_end=watch, **options)
    known = inpaint(image=image, mask_image=mask, strength=0.0, output_type="latent").images
    assert len(seen) == 4
    for (_, x_t), (sigma, _) in zip(seen, seen[1:], strict=False):
        expected = torch.lerp(known, start, sigma)
        assert largest_difference(x_t[..., 16:], expected[..., 16:]) < 1e-4
        assert largest_difference(x_t[..., :16], expected[..., :16]) > 1e-3


def test_a_soft_mask_blends_once(inpaint, photograph):
    hard, soft = Image.new("L", photograph.size, 255), Image.new("L", photograph.size, 64)
    options = {"image": photograph, "strength": 0.5}  # one step, so that the blend of steps before it has no part
    sample = np.asarray(inpaint(mask_image=hard, generator=seeded(), **options).images[0], float)
    found = np.asarray(inpaint(mask_image=soft, generator=seeded(), **options).images[0], float)
    expected = (64 * sample + 191 * np.asarray(photograph, float)) / 255
    assert np.abs(found - expected).max() <= 0.5 < np.abs(sample - found).max()


def test_a_soft_mask_weights_each_denoised_image(inpaint, photograph):
    ramp = Image.linear_gradient("L").resize(photograph.size)
    options = {"image": photograph, "strength": 1.0, "num_inference_steps": 3}
    soft, hard = (
        np.asarray(inpaint(mask_image=mask, generator=seeded(), **options).images[0], float)
        for mask in (ramp, Image.new("L", photograph.size, 255))
    )
    distance = np.abs(soft - np.asarray(photograph, float)).mean(axis=(1, 2))
    assert distance[:4].mean() < 0.2 * distance[-4:].mean()
    weight = np.asarray(ramp, float)[..., None] / 255
    assert np.abs(soft - (weight * hard + (1 - weight) * np.asarray(photograph, float))).max() > 2


def test_padding_mask_crop_samples_the_region_alone_and_larger(inpaint, photograph):
    image, mask = photograph.resize((64, 48)), Image.new("L", (64, 48))
    mask.paste(255, (20, 16, 36, 28))
    region = inpaint(image=image, mask_image=mask, padding_mask_crop=4, output_type="latent").images
    assert region.shape == (1, 3, 48, 64)
    assert inpaint(image=image, mask_image=mask, padding_mask_crop=4, height=24, width=32).images[0].size == (64, 48)
    far = image.copy()
    far.paste("red", (56, 40, 64, 48))
    found = [
        np.asarray(inpaint(image=one, mask_image=mask, padding_mask_crop=4, generator=seeded()).images[0])
        for one in (image, far)
    ]
    assert np.array_equal(found[0][16:28, 20:36], found[1][16:28, 20:36])  # what is far away is not seen
    assert not np.array_equal(found[0][16:28, 20:36], np.asarray(image)[16:28, 20:36])


def test_outpainting_keeps_the_image(inpaint, photograph):
    wider, mask = expand_canvas(photograph, left=10, top=3)
    found = inpaint(image=wider, mask_image=mask, strength=1.0).images[0]
    assert found.size == (43, 25)
    assert found.crop((10, 3, 43, 25)).tobytes() == photograph.tobytes()
    assert not np.array_equal(np.asarray(found)[:, :10], np.asarray(wider)[:, :10])


def test_several_images_and_masks_give_what_each_gives_alone(inpaint, toy, photograph):
    text = toy.encode_prompt(PROMPTS[:2])
    images = [photograph, photograph.transpose(Image.Transpose.ROTATE_180)]
    masks = [Image.new("L", photograph.size) for _ in images]
    masks[0].paste(255, (0, 0, 12, 12))
    masks[1].paste(255, (9, 9, 33, 22))
    start = noise(2, 24, 36)
    options = {"output_type": "np", "strength": 1.0}
    together = inpaint(image=images, mask_image=masks, prompt_embeds=text, latents=start, **options).images
    for i in range(2):
        given = {"image": images[i], "mask_image": masks[i], "prompt_embeds": text[i : i + 1]}
        alone = inpaint(**given, latents=start[i : i + 1], **options).images
        assert abs(alone[0] - together[i]).max() <= 1.01 / 255
    values = inpaint(image=photograph, mask_image=masks[0], **{**options, "output_type": "pt"}).images
    assert values.shape == (1, 3, 22, 33)
    assert (values * 255 - (values * 255).round()).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_image": None}, "^mask_image is missing"),
        ({"mask_image": Image.new("L", (8, 8))}, "^mask_image is 8x8, but image is 33x22"),
        ({"mask_image": "mask.png"}, "^mask_image is 'mask.png'"),
        ({"image": Image.new("I;16", (33, 22))}, r"^image\[0\] has mode I;16"),
        ({"strength": -0.1}, "^strength is -0.1"),
        ({"padding_mask_crop": 2.5}, "^padding_mask_crop is 2.5"),
        ({"padding_mask_crop": 3, "mask_image": Image.new("L", (33, 22))}, "^mask_image is black everywhere"),
        ({"height": 16}, "^width is missing"),
        ({"mask_image": [Image.new("L", (33, 22))] * 2}, "^mask_image has 2 images for 1 prompts"),
        ({"output_type": "gif"}, "^output_type is 'gif'"),
    ],
)
def test_bad_arguments_are_named(inpaint, photograph, options, message):
    with pytest.raises(ValueError, match=message):
        inpaint(**{"image": photograph, "mask_image": Image.new("L", photograph.size, 255), **options})
