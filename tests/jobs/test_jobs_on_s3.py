"""Jobs whose crawl and artifacts lie in a store that fails now and then."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from pipelines.core import storage
from pipelines.core.artifacts import load_artifact
from pipelines.toy.data import write_img2dataset

ROOT = Path(__file__).parents[2]


def run_job(name, tmp_path, **settings):
    """The artifact that a job says it made."""
    config = tmp_path / f"{name}.yaml"
    config.write_text(yaml.safe_dump(settings))
    # MLflow writes to the store too, with botocore's own retries and no others
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "AWS_MAX_ATTEMPTS")}
    command = [sys.executable, f"jobs/{name}.py", str(config)]
    log = tmp_path / f"{name}.log"
    with log.open("w") as out:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=out, stderr=out, timeout=300)
    told = log.read_text()
    assert done.returncode == 0, told[-3000:]
    for secret in ("test-key-id", "test-secret-key"):
        assert secret not in told
    assert "\r" not in told  # no bars in a file, and nothing after the result
    return load_artifact(json.loads(told.splitlines()[-1])["artifact"], name)


@pytest.mark.slow
@pytest.mark.ray
def test_curation_on_an_unreliable_store(faulty_s3, tmp_path, make_images):
    uri, server = faulty_s3
    write_img2dataset(iter(make_images(90)), tmp_path / "crawl", 30)
    for path in (tmp_path / "crawl").iterdir():
        storage.put_file(path, f"{uri}/crawl/{path.name}")
    refused = server.slow_down("(GET|PUT|HEAD)", every=7)
    cut = server.cut(2000, "GET", every=11)
    run = {"storage": f"{uri}/runs", "tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"}
    curated = run_job("curate", tmp_path, run=run, source=f"{uri}/crawl", held_out_every=4)
    stats = run_job("color_stats", tmp_path, run=run, curated=curated.uri)
    assert refused.struck > 10
    assert cut.struck > 3
    server.clear()
    captions: Counter[str] = Counter()
    for split in ("train", "held_out"):
        for file in curated.files(split, ".parquet"):
            with storage.open_file(file) as source:
                captions.update(pq.read_table(source)["caption"].to_pylist())
    assert captions == Counter(f"picture {i}" for i in range(90))
    assert stats.manifest["metrics"]["pixels"] == curated.manifest["metrics"]["kept_train"] * 64 * 64
