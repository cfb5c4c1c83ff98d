"""The split that a small data set is tested on."""

import pytest
from PIL import Image

from pipelines.core import artifacts, storage
from pipelines.data.curate.config import CurateSettings
from pipelines.data.curate.shard import SCHEMA
from pipelines.data.datasets import RowWriter, find_test_split
from pipelines.data.images import encode_png
from pipelines.evaluate.prompts import read_held_out


def curated_of(folder, **rows):
    """A curate artifact with so many rows in each split, as that step writes it but without its Ray."""
    image = encode_png(Image.new("RGB", (16, 16)))
    for split, count in rows.items():

        def write(path, split=split, count=count):
            with RowWriter(path, SCHEMA) as writer:
                for index in range(count):
                    writer.add({"key": f"{index}", "image": image, "caption": split, "width": 16, "height": 16})

        if count:
            storage.write_file(storage.join(str(folder), split, "16x16-00000.parquet"), write)
    return artifacts.write_manifest(str(folder), "curate", "123", CurateSettings(source="data"), {}, {})


@pytest.mark.parametrize(("held_out", "validation", "evaluation"), [(0, "train", "train"), (1, "held_out", "train"),
                                                                    (2, "held_out", "held_out")])  # fmt: skip
def test_split_to_test_on(tmp_path, caplog, held_out, validation, evaluation):
    curated = curated_of(tmp_path, train=20, held_out=held_out)
    assert find_test_split(curated) == validation
    assert ("too few to test on; training images are used" in caplog.text) == (validation == "train")
    prompts = [prompt.text for prompt, _ in read_held_out(curated)]
    assert prompts == [evaluation] * (held_out if evaluation == "held_out" else 20)
