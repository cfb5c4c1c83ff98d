from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from asymflow.oklab import RELEASED, OklabSpace
from asymflow.pipeline_arguments import (
    check_choices,
    check_count,
    check_fraction,
    check_references,
    check_sigmas,
    check_texts,
    choose_size,
    choose_space,
    choose_texts,
)

OWN = OklabSpace((0.5, 0.0, 0.1), 0.2)


@pytest.mark.parametrize("value", [0, -1, 2.5, True, None, "3"])
def test_a_count_is_an_integer_of_at_least_1(value):
    check_count("steps", 1)
    with pytest.raises(ValueError, match=f"^steps is {value!r}; it must be an integer of at least 1"):
        check_count("steps", value)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), None, "half"])
def test_a_fraction_is_a_number_between_0_and_1(value):
    for good in (0, 0.5, 1, True, False):
        check_fraction("strength", good)
    with pytest.raises(ValueError, match=rf"^strength is {value!r}; it must be a number in \[0, 1\]"):
        check_fraction("strength", value)


@pytest.mark.parametrize("value", [[], 0.5, "1", [1.0, "0"]])
def test_noise_levels_are_a_list_of_numbers(value):
    check_sigmas([1, 0.5])
    check_sigmas(None)
    with pytest.raises(ValueError, match="^sigmas is .*; it must be a list of numbers, one per step"):
        check_sigmas(value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flags": {"clamp": 1}}, "^clamp is 1; it must be True or False"),
        ({"output_type": "gif"}, "^output_type is 'gif'; allowed: pil, np, pt, latent"),
        ({"interval": (0.1,)}, r"^guidance_interval is \(0.1,\); it must be two numbers"),
        ({"interval": ("a", 1)}, "^guidance_interval is .*; it must be two numbers"),
        ({"generator": 3}, "^generator is 3; it must be a torch.Generator"),
        ({"generator": [None]}, r"^generator is \[None\]"),
    ],
)
def test_choices_of_another_type_are_named(changes, message):
    good = {"flags": {"clamp": True}, "output_type": "pt", "interval": (0, 1), "generator": [torch.Generator()]}
    check_choices(**good)
    with pytest.raises(ValueError, match=message):
        check_choices(**{**good, **changes})


@pytest.mark.parametrize(("image", "message"), [([], r"^image is \[\]"), ("fox.png", "^image is 'fox.png'")])
def test_references_are_images(image, message):
    picture = Image.new("RGB", (8, 8))
    for good in (None, picture, [picture]):
        check_references(good)
    with pytest.raises(ValueError, match=f"{message}; it must be a PIL image, or a list of at least one"):
        check_references(image)
    with pytest.raises(ValueError, match="^image_reference"):
        check_references(image, "image_reference")


@pytest.mark.parametrize(
    ("given", "reference", "expected"),
    [
        ((None, None), None, (64, 96)),
        ((32, None), None, (32, 96)),
        ((None, None), (40, 48), (40, 48)),
        ((16, 24), (40, 48), (16, 24)),
    ],
)
def test_the_size_is_the_given_one_the_references_or_the_default(given, reference, expected):
    assert choose_size(*given, reference, (64, 96), 8) == expected


def test_a_size_that_is_not_whole_patches_is_refused():
    with pytest.raises(ValueError, match="^height, width: the size 64x100 is not a multiple of 8 on both sides"):
        choose_size(None, 100, None, (64, 96), 8)


def test_beside_a_reference_one_side_is_not_enough():
    with pytest.raises(ValueError, match="^width is missing: with a reference image give both height and width"):
        choose_size(16, None, (40, 48), (64, 96), 8)


def test_the_color_space_is_the_transformers_own():
    config = SimpleNamespace(oklab_mean=list(OWN.mean), oklab_std=OWN.std)
    assert choose_space(config, None, None) == choose_space(config, OWN.mean, None) == OWN
    with pytest.raises(ValueError, match="^oklab_mean, oklab_std: the transformer was made for"):
        choose_space(config, None, 0.3)


def test_a_file_without_a_color_space_has_the_given_or_the_released_one():
    config = SimpleNamespace(oklab_mean=None, oklab_std=None)
    assert choose_space(config, None, None) == RELEASED
    assert choose_space(config, OWN.mean, OWN.std) == OWN


def test_texts_or_their_embeddings_are_taken_but_not_both():
    embeddings = torch.zeros(2, 5, 4)
    assert choose_texts("a", None, "prompt", 4) == ["a"]
    assert choose_texts(("a", "b"), None, "prompt", 4) == ["a", "b"]
    assert [tuple(e.shape) for e in choose_texts(None, embeddings, "prompt", 4)] == [(5, 4), (5, 4)]
    for both in (("a", embeddings), (None, None)):
        with pytest.raises(ValueError, match="^prompt: give either prompt or prompt_embeds"):
            choose_texts(*both, "prompt", 4)


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (torch.zeros(5, 4), r"^prompt_embeds is a tensor \(5, 4\); .*one text's is prompt_embeds\[None\]"),
        ([torch.zeros(5, 3)], r"^prompt_embeds\[0\] is a tensor \(5, 3\); it must be \(T, 4\)"),
        ([torch.zeros(5, 4), None], r"^prompt_embeds\[1\] is None"),
        ([torch.zeros(0, 4)], r"^prompt_embeds\[0\]"),
        ([], "^prompt_embeds is empty"),
    ],
)
def test_embeddings_of_another_shape_are_named(embeddings, message):
    with pytest.raises(ValueError, match=message):
        choose_texts(None, embeddings, "prompt", 4)


@pytest.mark.parametrize(
    ("texts", "message"), [([], "^prompt is empty"), (3, "^prompt is 3"), (["a", None], r"^prompt\[1\] is None")]
)
def test_what_is_not_a_text_is_named(texts, message):
    with pytest.raises(ValueError, match=message):
        check_texts(texts, "prompt")
