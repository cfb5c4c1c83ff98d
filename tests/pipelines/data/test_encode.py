"""Encoded files as any reader of parquet sees them, row for row those of the curated files."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from training_files import write_curated

from asymflow.models.latent import family_of
from pipelines.core import artifacts, storage
from pipelines.core.artifacts import Artifact
from pipelines.core.config import ConfigError, RunSettings
from pipelines.core.step import run_step
from pipelines.core.workers import ModelWorkers
from pipelines.data.basis import step as basis
from pipelines.data.basis.config import BasisSettings
from pipelines.data.config import CaptionSettings, EncodeResources, EncodeSettings
from pipelines.data.curate.config import CurateSettings
from pipelines.data.curate.shard import SCHEMA
from pipelines.data.datasets import RowWriter, read_images
from pipelines.data.embeddings import EncodedLatents, EncodedText, are_latents_stored, text_length, text_padding
from pipelines.data.encode import (
    STEP,
    UNCONDITIONAL,
    LatentWorker,
    TextWorker,
    load_unconditional,
    output_file,
)
from pipelines.data.images import encode_png
from pipelines.data.tensors import read_group

FILES = {"train/a-32x32": (32, 32), "train/b-48x32": (48, 32), "held_out/a-32x32": (32, 32)}
ROWS = 70  # more than a row group


def curated_in(folder: str, files: dict[str, tuple[int, int]], rows: int = ROWS) -> Artifact:
    """A curate artifact as that step writes it but without its Ray."""
    generator = torch.Generator().manual_seed(0)
    for name, (width, height) in files.items():

        def write(path, name=name, width=width, height=height):
            with RowWriter(path, SCHEMA) as writer:
                for i in range(rows):
                    pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
                    caption = " ".join(["picture", str(i), name][: 1 + i % 3])
                    image = encode_png(Image.fromarray(pixels.numpy()))
                    row = {"key": f"{name}-{i}", "image": image, "caption": caption, "width": width, "height": height}
                    writer.add(row)

        storage.write_file(storage.join(folder, f"{name}.parquet"), write)
    settings = CurateSettings(source="data", buckets=list(files.values()))
    return artifacts.write_manifest(folder, "curate", "123", settings, {}, {})


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    return curated_in(str(tmp_path_factory.mktemp("curated")), FILES)


def settings_for(curated, base, folder, workers=2, **changes) -> EncodeSettings:
    pool = ModelWorkers(workers=workers)
    run, resources = RunSettings(storage=str(folder)), EncodeResources(latents=pool, text=pool)
    return EncodeSettings(curated=curated.uri, base=str(base), run=run, resources=resources, **changes)


@pytest.fixture(scope="module")
def encoded(curated, tiny_base, local_ray, tmp_path_factory) -> Artifact:
    return run_step(STEP, settings_for(curated, tiny_base, tmp_path_factory.mktemp("two"))).artifact


@pytest.fixture(scope="module")
def on_the_fly(curated, tiny_base, local_ray, tmp_path_factory) -> Artifact:
    folder = tmp_path_factory.mktemp("on_the_fly")
    return run_step(STEP, settings_for(curated, tiny_base, folder, text="on_the_fly")).artifact


@pytest.fixture(scope="module")
def text_encoder(tiny_base):
    return family_of(tiny_base).load_text_encoder(str(tiny_base), "cpu", torch.float32, 512)


def numbers(bits) -> torch.Tensor:
    """bfloat16 is the upper half of float32."""
    return torch.from_numpy((np.asarray(bits, dtype=np.uint32) << 16).view(np.float32))


def group_sizes(file: str) -> list[int]:
    metadata = pq.read_metadata(file)
    return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]


@pytest.mark.ray
@pytest.mark.parametrize("kind", ["latents", "text"])
@pytest.mark.parametrize("name", FILES)
def test_rows_are_those_of_the_curated_file_in_order_and_in_the_same_groups(encoded, curated, kind, name):
    ours, theirs = encoded.file(kind, f"{name}.parquet"), curated.file(f"{name}.parquet")
    assert pq.read_table(ours)["key"].to_pylist() == pq.read_table(theirs)["key"].to_pylist()
    assert group_sizes(ours) == group_sizes(theirs) == [64, 6]


@pytest.mark.ray
@pytest.mark.parametrize("name", FILES)
def test_latents_are_read_with_their_shape_and_are_the_encoders(encoded, curated, tiny_base, name):
    column = pq.read_table(encoded.file("latents", f"{name}.parquet"))["latents"]
    width, height = FILES[name]
    assert column.type == pa.fixed_shape_tensor(pa.uint16(), [width * height // 256, 128])
    images = torch.cat([pictures.images for pictures in read_images(curated.file(f"{name}.parquet"))])
    expected = family_of(tiny_base).load_image_encoder(str(tiny_base), "cpu", torch.float32).encode(images)
    latents = numbers(column.combine_chunks().to_numpy_ndarray())
    torch.testing.assert_close(latents, expected, rtol=2**-8, atol=1e-4)  # bfloat16 keeps 8 bits


@pytest.mark.ray
def test_text_has_no_padding_and_is_that_of_each_caption_alone(encoded, curated, text_encoder):
    name = next(iter(FILES))
    table = pq.read_table(encoded.file("text", f"{name}.parquet"))
    assert table.schema.field("text").type == pa.list_(pa.list_(pa.uint16(), text_encoder.width))
    captions = table["caption"].to_pylist()
    assert captions == pq.read_table(curated.file(f"{name}.parquet"))["caption"].to_pylist()
    rows = list(zip(captions, table["text"].to_pylist(), strict=True))
    assert len({len(text) for _, text in rows}) > 1
    for caption, text in rows[:6] + rows[-6:]:
        expected = text_encoder.encode([caption])[0]
        torch.testing.assert_close(numbers(text), expected, rtol=2**-7, atol=1e-4)  # bfloat16, and others beside it
    assert torch.equal(load_unconditional(encoded), text_encoder.encode([""])[0].bfloat16())


@pytest.mark.ray
def test_metrics_equal_the_files(encoded):
    metrics, rows = encoded.manifest["metrics"], ROWS * len(FILES)
    assert metrics["pictures"] == rows
    for kind, name in (("latents", "latent_bytes_per_picture"), ("text", "text_bytes_per_picture")):
        sizes = [Path(encoded.file(kind, f"{file}.parquet")).stat().st_size for file in FILES]
        assert metrics[name] == pytest.approx(sum(sizes) / rows)
    texts = [text for file in FILES for text in pq.read_table(encoded.file("text", f"{file}.parquet"))["text"]]
    assert metrics["text_tokens_mean"] == pytest.approx(sum(map(len, texts)) / rows)


@pytest.mark.ray
def test_number_of_workers_changes_no_bit(encoded, curated, tiny_base, tmp_path):
    alone = run_step(STEP, settings_for(curated, tiny_base, tmp_path, workers=1)).artifact
    assert alone.id == encoded.id
    assert alone.manifest["files"] == encoded.manifest["files"]


@pytest.mark.ray
def test_on_the_fly_only_captions_are_stored(on_the_fly, encoded):
    for name in FILES:
        ours, theirs = (pq.read_table(a.file("text", f"{name}.parquet")) for a in (on_the_fly, encoded))
        assert ours.equals(theirs.drop_columns(["text"]))
        latents = f"latents/{name}.parquet"
        assert on_the_fly.manifest["files"][latents] == encoded.manifest["files"][latents]
    assert torch.equal(load_unconditional(on_the_fly), load_unconditional(encoded))
    assert "text_tokens_mean" not in on_the_fly.manifest["metrics"]
    assert on_the_fly.id != encoded.id


@pytest.mark.ray
def test_with_both_on_the_fly_there_are_captions_alone(on_the_fly, curated, tiny_base, tmp_path):
    settings = settings_for(curated, tiny_base, tmp_path, text="on_the_fly", latents="on_the_fly")
    bare = run_step(STEP, settings).artifact
    assert {name.partition("/")[0] for name in bare.manifest["files"]} == {"text", "unconditional.safetensors"}
    for name in FILES:
        text = f"text/{name}.parquet"
        assert bare.manifest["files"][text] == on_the_fly.manifest["files"][text]
    assert bare.manifest["metrics"].keys() == {"pictures", "text_bytes_per_picture"}
    assert bare.manifest["metrics"]["pictures"] == ROWS * len(FILES)
    assert not are_latents_stored(bare)
    assert are_latents_stored(on_the_fly)
    settings = BasisSettings(curated=curated.uri, encoded=bare.uri, run=RunSettings(storage=str(tmp_path)))
    with pytest.raises(ConfigError, match="encoded: it stores no latents.*remove it and set `base`"):
        run_step(basis.STEP, settings)


@pytest.mark.ray
def test_latents_made_of_a_files_images_are_those_that_are_stored(encoded, curated, tiny_base):
    source = EncodedLatents(str(tiny_base), "cpu")
    for name in FILES:
        pictures = pq.read_table(curated.file(f"{name}.parquet"))["image"].to_pylist()
        stored = pq.read_table(encoded.file("latents", f"{name}.parquet"))["latents"].combine_chunks()
        made = torch.stack(list(source.request(pictures)()))
        assert made.dtype == torch.bfloat16
        torch.testing.assert_close(made.float(), numbers(stored.to_numpy_ndarray()), rtol=2**-7, atol=1e-3)


@pytest.mark.ray
def test_an_interrupted_run_resumes(encoded, curated, tiny_base, tmp_path):
    """What kill -9 leaves: the summaries and files that were finished, and no manifest."""
    settings = settings_for(curated, tiny_base, tmp_path)
    folder = tmp_path / "encode" / encoded.id
    shutil.copytree(encoded.uri, folder)
    (folder / "manifest.json").unlink()
    (folder / "latents/train/b-48x32.parquet").unlink()
    (folder / ".done/latents/train-b-48x32.json").unlink()
    shutil.rmtree(folder / "text")
    shutil.rmtree(folder / ".done/text")
    kept = [folder / f"latents/{name}.parquet" for name in FILES if name != "train/b-48x32"]
    before = [path.stat().st_mtime_ns for path in kept]
    assert run_step(STEP, settings).artifact.manifest["files"] == encoded.manifest["files"]
    assert [path.stat().st_mtime_ns for path in kept] == before


def captions_of(curated, folder, keys=None, made_from=None) -> Artifact:
    """A caption artifact of other row groups than the curated one's; `keys` puts others in their place."""
    for name in FILES:
        table = pq.read_table(curated.file(f"{name}.parquet"), columns=["key"])
        ours = keys or table["key"].to_pylist()
        written = pa.table({"key": ours, "caption": [f"written for {key}" for key in ours]})
        path = Path(folder) / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(written, path, row_group_size=25)
    settings = CaptionSettings(curated=curated.uri, model="m")
    return artifacts.write_manifest(str(folder), "caption", "456", settings, {"curated": made_from or curated.id}, {})


@pytest.mark.ray
def test_the_caption_steps_captions_take_the_place_of_the_curated_ones(curated, tiny_base, local_ray, tmp_path):
    captions = captions_of(curated, tmp_path / "captions")
    settings = settings_for(curated, tiny_base, tmp_path, captions=captions.uri, text="on_the_fly")
    artifact = run_step(STEP, settings).artifact
    assert artifact.manifest["inputs"] == {"curated": curated.id, "captions": captions.id}
    for name in FILES:
        table = pq.read_table(artifact.file("text", f"{name}.parquet"))
        assert table["caption"].to_pylist() == [f"written for {key}" for key in table["key"].to_pylist()]
        assert group_sizes(artifact.file("text", f"{name}.parquet")) == [64, 6]


def test_captions_of_other_images_are_refused(curated, tiny_base, tmp_path):
    captions = captions_of(curated, tmp_path / "captions", made_from="another")
    with pytest.raises(ConfigError, match="captions: made from another curated artifact"):
        run_step(STEP, settings_for(curated, tiny_base, tmp_path, captions=captions.uri))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda keys: keys[::-1], "its rows are not those of"),
        (lambda keys: keys[:-1], "its rows are not those of"),
        (lambda keys: [*keys, "more"], "it has more rows than"),
    ],
    ids=["another order", "too few", "too many"],
)
def test_captions_of_other_rows_are_an_error_that_names_the_file(curated, tiny_base, tmp_path, change, message):
    shard = curated.file("train/a-32x32.parquet")
    keys = change(pq.read_table(shard, columns=["key"])["key"].to_pylist())
    captions = captions_of(curated, tmp_path / "captions", keys)
    settings = settings_for(curated, tiny_base, tmp_path, captions=captions.uri, text="on_the_fly")
    worker = TextWorker(settings, captions.uri, str(tmp_path / "out"))
    with pytest.raises(ValueError, match=f"captions/train/a-32x32.parquet: {message}"):
        worker(shard)
    assert not (tmp_path / "out").exists()


def test_sizes_that_do_not_divide_into_tokens_are_refused(tiny_base, tmp_path):
    odd = curated_in(str(tmp_path / "curated"), {"train/a-40x32": (40, 32)}, rows=2)
    settings = settings_for(odd, tiny_base, tmp_path)
    with pytest.raises(ConfigError, match="curated: its buckets hold 40x32; tokens of this base are 16x16"):
        STEP.check_inputs(settings, {"curated": odd})
    with pytest.raises(ValueError, match="a-40x32.parquet: images of 40x32 do not divide into tokens of 16x16"):
        LatentWorker(settings, str(tmp_path / "out"))(odd.file("train/a-40x32.parquet"))


def test_resources_are_not_hashed(curated, tiny_base, tmp_path):
    a, b = (settings_for(curated, tiny_base, tmp_path, workers=n) for n in (1, 2))
    others = [a.model_copy(update={kind: "on_the_fly"}) for kind in ("text", "latents")]
    kept = [artifacts.hashed_settings(s) for s in (a, b, *others)]
    assert kept[0] == kept[1]
    assert kept[0] not in kept[2:]
    assert kept[2] != kept[3]


def test_padded_text_is_stored_whole_and_so_is_that_of_no_caption(curated, tiny_base, tmp_path):
    settings = settings_for(curated, tiny_base, tmp_path, max_text_tokens=24, text_padding="max_length")
    worker = TextWorker(settings, "", str(tmp_path))
    worker(UNCONDITIONAL)
    name = next(iter(FILES))
    worker(curated.file(f"{name}.parquet"))
    table = pq.read_table(output_file(str(tmp_path), "text", f"{name}.parquet"))
    assert {len(text) for text in table["text"].to_pylist()} == {24}
    encoded = Artifact(str(tmp_path), {"config": settings.model_dump(mode="json")})
    assert load_unconditional(encoded).shape == (24, worker.encoder.width)
    assert text_padding(encoded) == "max_length"
    caption, text = table["caption"][0].as_py(), table["text"][0].as_py()
    made = EncodedText(str(tiny_base), "cpu", *text_length(encoded)).encode([caption])[0]
    torch.testing.assert_close(numbers(text), made.float(), rtol=2**-7, atol=1e-4)
    unpadded = settings_for(curated, tiny_base, tmp_path, max_text_tokens=24)
    assert artifacts.hashed_settings(unpadded) != artifacts.hashed_settings(settings)
    assert "text_padding" not in artifacts.hashed_settings(unpadded)


def test_latents_of_reference_images_are_stored_beside_those_of_the_image(tiny_base, tmp_path):
    """Row group by row group, in order, and the same as of encoders beside the training."""
    curated = tmp_path / "train/32x32+2-00000.parquet"
    curated.parent.mkdir()
    write_curated(curated, 6, 32, 32, references=2)
    settings = EncodeSettings(curated=str(tmp_path), base=str(tiny_base))
    worker = LatentWorker(settings, str(tmp_path / "out"))
    assert worker(str(curated))["rows"] == 6
    file = tmp_path / "out/latents/train/32x32+2-00000.parquet"
    assert pq.read_schema(file).field("reference_latents").type == pa.fixed_shape_tensor(pa.uint16(), [2, 4, 128])
    assert group_sizes(str(file)) == group_sizes(str(curated)) == [4, 2]
    rows = [
        row for group in range(2) for row in read_group(str(file), group, ["reference_latents"])["reference_latents"]
    ]
    encoder = EncodedLatents(str(tiny_base), "cpu")
    for row, encoded in zip(rows, pq.read_table(curated)["references"].to_pylist(), strict=True):
        for z, data in zip(row, encoded, strict=True):
            torch.testing.assert_close(z.float(), encoder.encode([data])[0].float(), rtol=2**-6, atol=2**-6)
