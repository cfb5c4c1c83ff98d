from pathlib import Path

import pytest
from PIL import Image

from pipelines.core import storage
from pipelines.core.config import ConfigError
from pipelines.data.images import BadImage, encode_png
from pipelines.evaluate.image_sets import (
    in_batches,
    keys_in,
    load_found_images,
    load_image,
    reference_images,
    store_images,
)
from pipelines.evaluate.prompts import Prompt, list_generations


def test_dpg_bench_writes_a_grid_per_item(tmp_path):
    generations = list_generations([Prompt(name, name) for name in ("vrd1", "vrd2")], 4)
    (tmp_path / "images").mkdir()
    for p, name in enumerate(("vrd1", "vrd2")):
        grid = Image.new("RGB", (64, 32))
        for r, corner in enumerate([(0, 0), (32, 0), (0, 16), (32, 16)]):
            grid.paste(Image.new("RGB", (32, 16), (40 * r, 200 * p, 0)), corner)
        grid.save(tmp_path / "images" / f"{name}.png")
    found = load_found_images(str(tmp_path / "images"), generations, 4, str(tmp_path / "runs"))
    assert [key for key in found.files] == [generation.key for generation in generations]
    for generation in generations:
        image = load_image(found.files[generation.key])
        assert image.shape == (3, 16, 32)
        assert image[:, 0, 0].tolist() == [40 * (generation.index % 4), 200 * (generation.index // 4), 0]
    Image.new("RGB", (63, 32)).save(tmp_path / "images" / "vrd1.png")
    with pytest.raises(ConfigError, match="vrd1.png of 63x32 is not a grid of two by two images"):
        load_found_images(str(tmp_path / "images"), generations, 4, str(tmp_path / "runs"))


def test_another_match_of_the_same_images_is_another_protocol(tmp_path):
    root = str(tmp_path / "images")
    for i in range(6):
        storage.write_bytes(f"{root}/{i}.png", b"image")
    prompts = [Prompt(f"{i:05}", f"prompt {i}") for i in range(6)]
    ids = {
        load_found_images(root, list_generations(prompts[: 6 // r], r), r, str(tmp_path / "runs")).id for r in (1, 2, 3)
    }  # fmt: skip
    assert len(ids) == 3


def test_images_that_cannot_be_read(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG no picture")
    with pytest.raises(BadImage):
        load_image(str(tmp_path / "bad.png"))


def test_batches():
    assert in_batches([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]
    assert in_batches([], 3) == []


def test_real_images_are_stored_once_and_completed(tmp_path):
    images = [encode_png(Image.new("RGB", (4, 4), (40 * i, 0, 0))) for i in range(3)]
    found = store_images(iter(images), {"source": "x"}, 3, str(tmp_path))
    assert list(found.files) == ["000000", "000001", "000002"]
    assert len(keys_in(str(Path(found.files["000000"]).parent))) == 3
    never = (pytest.fail("an image was read") for _ in range(3))
    assert store_images(never, {"source": "x"}, 3, str(tmp_path)) == found
    Path(found.files["000001"]).unlink()
    assert store_images(iter(images), {"source": "x"}, 3, str(tmp_path)) == found
    assert load_image(found.files["000001"])[0, 0, 0] == 40


def test_a_reference_folder_without_images_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=f"reference.source='{tmp_path}': contains no images"):
        reference_images(str(tmp_path))
    Image.new("RGB", (4, 4)).save(tmp_path / "any name.png")
    assert list(reference_images(str(tmp_path)).files.values()) == [str(tmp_path / "any name.png")]
