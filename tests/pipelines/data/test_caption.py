import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
from captioner_fixture import write_captioner
from PIL import Image
from training_files import write_curated

from asymflow.models.captioner import Caption
from pipelines.core import artifacts, storage
from pipelines.core.config import ConfigError, RunSettings
from pipelines.core.step import identify, run_step
from pipelines.data import caption
from pipelines.data.caption import STEP, ShardCaptioner, batches, clean_caption, rows_of
from pipelines.data.config import CaptionSettings, CaptionWorkers
from pipelines.data.curate.config import CurateSettings
from pipelines.data.curate.shard import SCHEMA as CURATED
from pipelines.data.datasets import RowWriter
from pipelines.data.images import BadImage, encode_png

FILES = {"train/a-64x64": (64, 64), "train/b-96x48": (96, 48), "held_out/a-64x64": (64, 64)}
ROWS = 10


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_captioner(tmp_path_factory.mktemp("models") / "qwen"))


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    """A curate artifact as that step writes it but without its Ray."""
    folder = storage.absolute(str(tmp_path_factory.mktemp("curated")))
    random = np.random.default_rng(0)
    for name, (width, height) in FILES.items():

        def write(path, name=name, width=width, height=height):
            with RowWriter(path, CURATED) as writer:
                for i in range(ROWS):
                    pixels = random.integers(0, 128, (height, width, 3)) + random.integers(0, 128, 3)
                    writer.add(
                        {
                            "key": f"{name[:5]}{i}", "image": encode_png(Image.fromarray(pixels.astype(np.uint8))),
                            "caption": f"original {i}", "width": width, "height": height,
                        }
                    )  # fmt: skip

        storage.write_file(storage.join(folder, f"{name}.parquet"), write)
    return artifacts.write_manifest(folder, "curate", "123", CurateSettings(source="data"), {}, {})


def settings_of(curated, model, folder, workers=2, batch_pixels=4 * 64 * 64, **changes):
    resources = CaptionWorkers(workers=workers, batch_pixels=batch_pixels)
    short = {"prompt": "What is here?", "max_new_tokens": 12}
    run = RunSettings(storage=str(folder))
    return CaptionSettings(curated=curated.uri, model=model, run=run, resources=resources, **{**short, **changes})


@pytest.fixture(scope="module")
def artifact(curated, model, local_ray, tmp_path_factory):
    return run_step(STEP, settings_of(curated, model, tmp_path_factory.mktemp("two"))).artifact


@pytest.mark.ray
def test_rows_are_the_curated_ones_in_order(artifact, curated):
    assert set(artifact.manifest["files"]) == {f"{name}.parquet" for name in FILES}
    for name in FILES:
        before = pq.read_table(curated.file(f"{name}.parquet"), columns=["key", "caption"]).to_pydict()
        after = pq.read_table(artifact.file(f"{name}.parquet"))
        assert after.schema == caption.SCHEMA
        rows = after.to_pydict()
        assert rows["key"] == before["key"]
        assert rows["original"] == before["caption"]
        for text, original, source, tokens, finished in zip(*list(rows.values())[1:], strict=True):
            assert 0 <= tokens <= 12
            assert finished or tokens == 12
            assert source == ("original" if text == original else "model")
            assert text == " ".join(text.split())
    assert len({row["caption"] for row in rows_of(artifact.file("train/a-64x64.parquet"))}) > ROWS / 2


@pytest.mark.ray
def test_metrics_are_those_of_the_rows(artifact):
    rows = [row for name in FILES for row in rows_of(artifact.file(f"{name}.parquet"))]
    assert artifact.manifest["metrics"] == {
        "pictures": 3 * ROWS,
        "tokens_mean": pytest.approx(sum(row["tokens"] for row in rows) / (3 * ROWS)),
        "cut": sum(not row["finished"] for row in rows),
        "kept_original": sum(row["source"] == "original" for row in rows),
    }
    assert 0 < artifact.manifest["metrics"]["cut"] < 3 * ROWS


@pytest.mark.ray
def test_images_and_a_table_of_them_are_logged(artifact):
    storage_root = Path(artifact.uri).parents[1]
    run_id = json.loads(storage.read_bytes(artifact.file(".run.json")))["mlflow_run"]
    client = mlflow.tracking.MlflowClient(f"sqlite:///{storage_root}/mlflow.db")
    sheet = Image.open(client.download_artifacts(run_id, "pictures/captions.png", str(storage_root)))
    assert sheet.height > ROWS * 256
    assert sheet.width > 256
    table = json.loads(Path(client.download_artifacts(run_id, "captions.json", str(storage_root))).read_text())
    first = rows_of(artifact.file("train/a-64x64.parquet"))
    assert table["columns"] == caption.SCHEMA.names
    assert table["data"] == [list(row.values()) for row in first]


@pytest.mark.ray
def test_one_worker_and_a_relative_folder_and_a_batch_of_one_make_the_same(
    artifact, curated, model, tmp_path, monkeypatch
):
    monkeypatch.chdir(Path(model).parent)
    again = run_step(STEP, settings_of(curated, "qwen", tmp_path, workers=1, batch_pixels=1)).artifact
    assert again.id == artifact.id
    assert again.manifest["files"] == artifact.manifest["files"]


def test_settings_of_captions_are_hashed(curated, model, tmp_path):
    def identity(**changes):
        return identify(STEP, settings_of(curated, model, tmp_path, **changes), {"curated": curated})

    ids = [identity(), identity(prompt="Why?"), identity(max_pixels=56 * 56), identity(backend="vllm")]
    assert len(set(ids)) == 4
    assert identity(workers=5, batch_pixels=1) == ids[0]


class Killed(BaseException):
    pass


class Counting:
    """A captioner that notes what it is shown, and is killed after a number of pictures."""

    def __init__(self, captioner, limit=10**9):
        self.captioner, self.limit, self.batches = captioner, limit, []

    def caption(self, images):
        if sum(self.batches) + len(images) > self.limit:
            raise Killed
        self.batches.append(len(images))
        return self.captioner.caption(images)


@pytest.fixture
def worker(curated, model, tmp_path):
    """Call with what to change: a ShardCaptioner in this process, whose captioner counts."""

    def make(folder="out", limit=10**9, **changes):
        worker = ShardCaptioner(settings_of(curated, model, tmp_path, **changes), str(tmp_path / folder))
        worker.captioner = Counting(worker.captioner, limit)
        return worker

    return make


def test_a_killed_worker_resumes_after_its_last_part(worker, curated, tmp_path):
    """Also with batches of another size, as after a lack of memory."""
    shard = curated.file("train/a-64x64.parquet")
    whole = worker("whole")
    summary = whole(shard)
    assert whole.captioner.batches == [4, 4, 2]
    assert summary["pictures"] == ROWS
    for limit, rest in ((0, [3, 3, 3, 1]), (4, [3, 3]), (8, [2])):
        with pytest.raises(Killed):
            worker(f"out{limit}", limit)(shard)
        assert storage.list_files(str(tmp_path / f"out{limit}")) == []  # parts are hidden
        after = worker(f"out{limit}", batch_pixels=3 * 64 * 64)
        assert after(shard) == summary
        assert after.captioner.batches == rest
        expected = (tmp_path / "whole/train/a-64x64.parquet").read_bytes()
        assert (tmp_path / f"out{limit}/train/a-64x64.parquet").read_bytes() == expected
        assert not list((tmp_path / f"out{limit}/.parts").iterdir())


def test_a_finished_file_is_not_captioned_again(worker, curated):
    """As after a kill between the file and its summary."""
    shard = curated.file("train/a-64x64.parquet")
    summary = worker()(shard)
    again = worker()
    assert again(shard) == summary
    assert again.captioner.batches == []


def test_a_part_of_other_keys_is_not_taken(worker, curated, tmp_path):
    with pytest.raises(Killed):
        worker(limit=8)(curated.file("train/b-96x48.parquet"))
    parts = tmp_path / "out/.parts"
    (parts / "train-b-96x48").rename(parts / "held_out-a-64x64")
    other = worker()
    other(curated.file("held_out/a-64x64.parquet"))
    assert sum(other.captioner.batches) == ROWS


def test_the_same_keys_but_not_from_the_start_are_not_taken(worker, curated, tmp_path):
    shard = curated.file("train/a-64x64.parquet")
    with pytest.raises(Killed):
        worker(limit=8)(shard)
    parts = tmp_path / "out/.parts/train-a-64x64"
    assert sorted(p.name for p in parts.iterdir()) == ["00000.parquet", "00004.parquet"]
    (parts / "00000.parquet").unlink()
    after = worker()
    after(shard)
    assert after.captioner.batches == [4, 4, 2]


class Scripted:
    def __init__(self, captions):
        self.captions = list(captions)

    def caption(self, images):
        return [self.captions.pop(0) for _ in images]


def test_an_empty_caption_keeps_the_original_and_is_counted(worker, curated, tmp_path):
    said = [Caption(" \n", 2, True), Caption("A dog. A c", 12, False), *[Caption("A\n cat.", 3, True)] * (ROWS - 2)]
    captioner = worker()
    captioner.captioner = Scripted(said)
    assert captioner(curated.file("train/a-64x64.parquet")) == {
        "pictures": ROWS, "tokens": 2 + 12 + 3 * (ROWS - 2), "cut": 1, "kept_original": 1,
    }  # fmt: skip
    rows = list(rows_of(str(tmp_path / "out/train/a-64x64.parquet")))
    assert [tuple(row.values()) for row in rows[:3]] == [
        ("train0", "original 0", "original 0", "original", 2, True),
        ("train1", "A dog.", "original 1", "model", 12, False),
        ("train2", "A cat.", "original 2", "model", 3, True),
    ]


@pytest.mark.parametrize(
    ("text", "finished", "clean"),
    [
        ("  A dog\n\non  grass. ", True, "A dog on grass."),
        ("A dog on grass", True, "A dog on grass"),
        ("A dog. A cat? A bi", False, "A dog. A cat?"),
        ("A dog. A cat.", False, "A dog. A cat."),
        ('A sign says "Stop!" Behind it a', False, 'A sign says "Stop!"'),
        ("A tower 3.5 metres hi", False, "A tower 3.5 metres hi"),
        ("", False, ""),
    ],
)
def test_clean_caption(text, finished, clean):
    assert clean_caption(Caption(text, 9, finished)) == clean


def test_batches_hold_as_many_images_as_fit():
    def sizes(widths, max_pixels, batch_pixels):
        rows = [{"width": width, "height": 10} for width in widths]
        made = list(batches(rows, max_pixels, batch_pixels))
        assert [row for batch in made for row in batch] == rows
        return [len(batch) for batch in made]

    assert sizes([10] * 7, 10**6, 300) == [3, 3, 1]
    assert sizes([10, 10, 20, 40, 10], 10**6, 300) == [2, 1, 1, 1]  # 40 x 10 alone is too much, and goes alone
    assert sizes([10**6] * 5, 100, 200) == [2, 2, 1]  # made smaller first
    assert sizes([], 1, 1) == []


def test_an_image_that_cannot_be_decoded_is_named():
    with pytest.raises(BadImage, match="^key7: not an image$"):
        caption.decode_row({"key": "key7", "image": b"no"})


def refusal(settings):
    with pytest.raises(ConfigError) as refused:
        STEP.check(settings)
    message = str(refused.value)
    assert "\n" not in message
    return message


@pytest.fixture
def broken(model, tmp_path):
    """Call with a file's name and its new content (None: deleted): a model's folder with that change."""

    def make(name, content=None):
        folder = tmp_path / "broken"
        folder.mkdir()
        for file in Path(model).iterdir():
            (folder / file.name).symlink_to(file)
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_text(content)
        return str(folder)

    return make


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "it has no config.json"),
        ("config.json", "{", "config.json is not a JSON object"),
        ("config.json", '{"model_type": "llama"}', "config.json has model_type 'llama', not 'qwen2_5_vl'"),
        ("tokenizer.json", None, "it has no tokenizer.json"),
        ("preprocessor_config.json", None, "it has no preprocessor_config.json"),
        ("model.safetensors", None, "it has no model.safetensors"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "part.safetensors"}}', "it has no part.safetensors"),
    ],
)
def test_incomplete_models_are_refused(broken, curated, tmp_path, name, content, message):
    folder = broken(name, content)
    said = refusal(settings_of(curated, folder, tmp_path))
    assert said == (
        f"model='{folder}': {message}; download the complete model, for example with "
        f"`hf download Qwen/Qwen2.5-VL-7B-Instruct --local-dir {folder}`"
    )


def test_an_absent_folder_is_refused_and_a_whole_one_is_not(curated, model, tmp_path):
    assert "model='absent': no such folder; download" in refusal(settings_of(curated, "absent", tmp_path))
    STEP.check(settings_of(curated, model, tmp_path))


def test_vllm_must_be_installed_and_have_whole_gpus(curated, model, tmp_path, monkeypatch):
    settings = settings_of(curated, model, tmp_path, backend="vllm")
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert "vLLM is not installed; `pip install 'asymflow[vllm]'`" in refusal(settings)
    module = ModuleType("vllm")
    module.__spec__ = ModuleSpec("vllm", None)
    monkeypatch.setitem(sys.modules, "vllm", module)
    for gpus in (0, 0.5, 1.5):
        resources = CaptionWorkers(gpus_per_worker=gpus)
        said = refusal(settings.model_copy(update={"resources": resources}))
        assert said == f"resources.gpus_per_worker={gpus:g}: vLLM needs whole GPUs, 1 or more per worker"
    STEP.check(settings.model_copy(update={"resources": CaptionWorkers(gpus_per_worker=2)}))


def test_the_contact_sheet_grows_with_its_captions():
    rows = [{"original": "fox", "caption": "word " * n} for n in (10, 1000)]
    short, long = (caption.caption_sheet([Image.new("RGB", (64, 32))], [row]) for row in rows)
    assert short.size == (short.width, 128 + 2 * 12)
    assert long.height > 1000 * 5 / 90 * 10
    assert np.asarray(long)[-40:].min() < 128  # the last line is there


def test_edits_keep_their_instructions(model, tmp_path):
    file = tmp_path / "train/32x32+1-00000.parquet"
    file.parent.mkdir()
    write_curated(file, 6, 32, 32, references=1)
    out = tmp_path / "out"
    settings = CaptionSettings(curated=str(tmp_path), model=model)
    counts = ShardCaptioner(settings, str(out))(str(file))
    assert counts == {"pictures": 6, "tokens": 0, "cut": 0, "kept_original": 6}
    written, before = pq.read_table(out / "train/32x32+1-00000.parquet"), pq.read_table(file)
    assert written["key"] == before["key"]
    assert written["caption"] == written["original"] == before["caption"]
