"""The published training set in small on a stand-in of the hub: curated without its tars on disk, killed five times."""

import gzip
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import SIGNATURE, serve_hub
from PIL import Image
from tars import tar_of

ROOT = Path(__file__).parents[2]
TOKEN = "planted-hub-token-31fa"
SHARDS, PER_SHARD, SIDE = 20, 8, 256
ABSENT, DAMAGED = "hash-0021", "hash-0038"  # of the captions, and of the images
WITHOUT_HASH, REPEATED = 75, 130  # numbers of images; the second has the hash of the first image


def png_of(number):
    buffer = io.BytesIO()
    data = random.Random(number).randbytes(SIDE * SIDE * 3)
    Image.frombytes("RGB", (SIDE, SIDE), data).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def hash_of(number):
    return f"hash-{0 if number == REPEATED else number:04d}"


def members_of(number):
    image, record = png_of(number), {"image_hash": hash_of(number), "hw": [SIDE, SIDE], "size_idx": 0}
    if number == WITHOUT_HASH:
        del record["image_hash"]
    if hash_of(number) == DAMAGED:
        image = image[: len(image) // 2]
    return [(f"{number:06d}.png", image), (f"{number:06d}.json", json.dumps(record).encode())]


@pytest.fixture(scope="module")
def published():
    """The two data sets, with the layout of the published ones."""
    images = {}
    for shard in range(SHARDS):
        numbers = range(shard * PER_SHARD, (shard + 1) * PER_SHARD)
        tar = tar_of([member for number in numbers for member in members_of(number)])
        images[f"data/train-{shard:05d}-of-{SHARDS:05d}.tar"] = tar
    captioned = [name for number in range(SHARDS * PER_SHARD) if (name := hash_of(number)) != ABSENT]
    random.Random(0).shuffle(captioned)
    buffer = io.BytesIO()
    pq.write_table(pa.table({"prompt": [f"caption of {name}" for name in captioned]}), buffer)
    mapping = "".join(json.dumps({"image_hash": name}) + "\n" for name in captioned)
    captions = {
        "README.md": b"about", "data/train-00000-of-00001.parquet": buffer.getvalue(),
        "prompt_mapping.jsonl.gz": gzip.compress(mapping.encode()),
    }  # fmt: skip
    return {"Lakonik/laion-3m": {"README.md": b"about", **images}, "Lakonik/t2i-prompts-3m": captions}


class DiskUse(threading.Thread):
    """Measures the most bytes that lie below some folders at a time."""

    def __init__(self, *folders):
        super().__init__(daemon=True)
        self.folders, self.peak, self.stop = folders, 0, threading.Event()

    def run(self):
        while not self.stop.wait(0.02):
            self.peak = max(self.peak, sum(map(bytes_below, self.folders)))


def bytes_below(folder):
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue
    return total


def start(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"HF_TOKEN": TOKEN, "TMPDIR": str(tmp_path / "scratch"), "HF_HOME": str(tmp_path / "hf")}
    environment |= {"RAY_TMPDIR": tempfile.gettempdir()}  # else Ray's sockets are in TMPDIR, with too long a path
    command = [
        sys.executable, str(ROOT / "jobs" / "curate.py"), str(ROOT / "jobs/configs/curate/laion_3m.yaml"),
        f"run.storage={tmp_path / 'runs'}", "buckets=[[32, 32]]", "held_out_every=4", "rows_per_file=50",
        "resources.workers=2",
    ]  # fmt: skip
    with open(tmp_path / "log", "a") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, stdout=log, stderr=log)


def summaries(tmp_path):
    return {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/curate/*/.done/read/*.json")}


@pytest.mark.slow
@pytest.mark.ray
def test_published_set_is_curated_without_its_tars_on_disk(published, tmp_path):
    for name in ("scratch", "hf"):
        (tmp_path / name).mkdir()
    disk = DiskUse(tmp_path / "scratch", tmp_path / "hf")
    with serve_hub(published) as hub:
        hub.token, hub.delay = TOKEN, 0.1
        disk.start()
        for kill in range(5):
            before = summaries(tmp_path)
            job, deadline = start(tmp_path), time.monotonic() + 240
            try:
                while len(summaries(tmp_path)) < 3 * (kill + 1):
                    assert job.poll() is None, (tmp_path / "log").read_text()[-3000:]
                    assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
                    time.sleep(0.02)
            finally:
                os.killpg(job.pid, signal.SIGKILL)
                job.wait()
            after = summaries(tmp_path)
            assert len(after) < SHARDS
            assert after.items() >= before.items()
        assert start(tmp_path).wait(240) == 0, (tmp_path / "log").read_text()[-3000:]
        assert not hub.leaked
    disk.stop.set()
    shard_size = max(map(len, published["Lakonik/laion-3m"].values()))
    assert 0 < disk.peak < 2 * shard_size
    check_result(tmp_path)
    check_secrets(tmp_path)


def check_result(tmp_path):
    """Every image is in train, held_out or rejected, once, with its own caption or the reason."""
    (folder,) = tmp_path.glob("runs/curate/*")
    kept = [row for split in ("train", "held_out") for row in rows_below(folder / split)]
    rejected = rows_below(folder / "rejected")
    assert all(row["caption"] == f"caption of {row['key']}" for row in kept)
    reasons = {row["key"]: row["reason"] for row in rejected}
    without = f"train-{WITHOUT_HASH // PER_SHARD:05d}-of-{SHARDS:05d}.tar/{WITHOUT_HASH:06d}"
    assert reasons == {
        without: "no global key", ABSENT: "no caption of its key", DAMAGED: "truncated or corrupt",
        hash_of(0): "repeated key",
    }  # fmt: skip
    expected = Counter(without if number == WITHOUT_HASH else hash_of(number) for number in range(SHARDS * PER_SHARD))
    assert Counter(row["key"] for row in kept + rejected) == expected
    assert json.loads((folder / "report.json").read_text())["rejected"] == Counter(reasons.values())


def rows_below(folder):
    return [row for file in folder.rglob("*.parquet") for row in pq.read_table(file).to_pylist()]


def check_secrets(tmp_path):
    for path in [tmp_path / "log", *tmp_path.glob("runs/**/*")]:
        if path.is_file():
            content = path.read_bytes()
            assert TOKEN.encode() not in content, path
            assert SIGNATURE.encode() not in content, path
