"""Data sets on a hub: read completely and once, identified by content, and no token or signed address in a message."""

import io
import logging
import random

import pytest
from hub import SIGNATURE, serve_hub

from pipelines.core import hub_dataset, storage
from pipelines.core.config import ConfigError, Settings, SourceUri, Uri, validate
from pipelines.core.identity import identify, pin_repositories
from pipelines.core.storage import StorageError
from pipelines.data.curate.step import STEP

TOKEN = "planted-hub-token-9c2f"
SHARD = "hf://datasets/owner/crawl/data/00000.tar"


@pytest.fixture
def data():
    return random.Random(0).randbytes(200_000)


@pytest.fixture
def hub(data, monkeypatch):
    monkeypatch.setattr(hub_dataset, "CHUNK", 16_384)
    files = {"README.md": b"about", ".gitattributes": b"", "data/00000.tar": data, "data/more/00001.tar": b"x"}
    with serve_hub({"owner/crawl": files}) as served:
        yield served


class Named(Settings):
    source: SourceUri = "data"
    storage: Uri = "runs"


@pytest.mark.parametrize(
    "uri", ["hf://owner/name", "hf://datasets/owner", "hf://datasets/a/b@", "hf://datasets/a/b@/x"]
)
def test_other_uris_are_refused(uri):
    with pytest.raises(ConfigError, match="^source='hf://.*': must be hf://datasets/OWNER/NAME "):
        validate(Named, {"source": uri})


def test_nothing_is_written_to_the_hub():
    with pytest.raises(ConfigError, match="^storage='hf://datasets/a/b': must be a local path or s3://bucket/prefix"):
        validate(Named, {"storage": "hf://datasets/a/b"})


def test_lists_and_finds_files(hub):
    root = "hf://datasets/owner/crawl"
    assert storage.list_files(root) == [
        f"{root}/{path}" for path in ("README.md", "data/00000.tar", "data/more/00001.tar")
    ]
    assert storage.list_files(f"{root}/data/", ".tar") == [SHARD, f"{root}/data/more/00001.tar"]
    assert storage.list_files(f"{root}/absent") == []
    assert storage.exists(SHARD)
    assert storage.exists(f"{root}/data")
    assert storage.exists(root)
    assert not storage.exists(f"{root}/data/00000.parquet")
    for missing in (f"{root}/data/absent.tar", f"{root}/data"):
        with pytest.raises(FileNotFoundError):
            storage.open_file(missing)


@pytest.mark.parametrize("fault", ["503", "cut"])
def test_a_broken_range_is_requested_again(hub, data, fault):
    served = "GET /signed/"
    fault = hub.server.slow_down(served, every=3) if fault == "503" else hub.server.cut(5_000, served, every=3)
    assert storage.read_bytes(SHARD) == data
    assert fault.struck >= 4


def test_seeks(hub, data):
    with storage.open_file(SHARD) as file:
        assert file.seek(0, io.SEEK_END) == len(data)
        assert file.read(1) == b""
        for place in (150_000, 3, 16_384, 199_990):
            file.seek(place)
            assert file.read(100) == data[place : place + 100]


def test_listings_are_retried_and_requested_once(hub):
    pinned = hub_dataset.pin("hf://datasets/owner/crawl")
    fault = hub.server.slow_down("GET /api/datasets/owner/crawl/tree", every=2)
    for _ in range(3):
        assert storage.exists(f"{pinned}/data/00000.tar")
        assert not storage.exists(f"{pinned}/data/00000.parquet")
        assert len(storage.list_files(pinned, ".tar")) == 2
    assert fault.struck
    assert hub.server.count("GET /api/datasets/owner/crawl/tree") == 3 + fault.struck


def test_wrong_bytes_are_noticed_by_their_sha256(hub, data):
    hub.corrupt = b"?"
    with storage.open_file(SHARD) as file:
        assert file.read(16_384)[1:] == data[1:16_384]
        with pytest.raises(
            StorageError, match="data/00000.tar: the received bytes have SHA-256 .* the hub states .*run again"
        ):
            file.read()


def test_wrong_bytes_are_noticed_after_a_reader_went_back(hub):
    hub.corrupt = b"?"
    with storage.open_file(SHARD) as file:
        file.read(40_000)
        file.seek(100)
        with pytest.raises(StorageError, match="the received bytes have SHA-256"):
            file.read()
    with storage.open_file(SHARD) as file:  # a part of the file, as of a table, cannot be checked
        file.seek(40_000)
        file.read()


def test_a_gated_data_set_is_refused_before_anything_starts(hub):
    hub.gated = True
    settings = validate(STEP.settings, {"source": "hf://datasets/owner/crawl/data"})
    with pytest.raises(
        ConfigError, match="^source='hf.*': hf.*/data/00000.tar cannot be read: .*GatedRepoError.*HF_TOKEN"
    ):
        STEP.check(settings)


def test_a_lasting_outage_ends_with_the_uri_and_no_secret(hub, monkeypatch, caplog, capfd):
    hub.token = TOKEN
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    caplog.set_level(logging.WARNING)
    fault = hub.server.slow_down("GET /signed/")
    with pytest.raises(StorageError, match=f"^{SHARD}: .*503") as raised:
        storage.read_bytes(SHARD)
    assert fault.struck == 5
    assert not hub.leaked
    told = str(raised.value) + caplog.text + "".join(capfd.readouterr())
    assert "503" in caplog.text
    assert TOKEN not in told
    assert SIGNATURE not in told


def test_the_token_comes_from_the_environment(hub, data, monkeypatch):
    hub.token = TOKEN
    settings = validate(STEP.settings, {"source": "hf://datasets/owner/crawl"})
    with pytest.raises(
        ConfigError, match="^source='hf://datasets/owner/crawl': no such data set .*or no access.*HF_TOKEN"
    ):
        pin_repositories(STEP, settings)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert storage.read_bytes(SHARD) == data
    assert not hub.leaked
    assert TOKEN not in str(pin_repositories(STEP, settings))


def test_a_data_set_is_pinned_and_known_by_its_content(hub):
    captions = {"source": "hf://datasets/owner/crawl/data"}
    settings = validate(STEP.settings, {"source": "hf://datasets/owner/crawl/data", "captions": captions})
    pinned = pin_repositories(STEP, settings)
    commit = hub.commit_of("owner/crawl")
    assert pinned.source == pinned.captions.source == f"hf://datasets/owner/crawl@{commit}/data"
    first = identify(STEP, pinned, {})
    hub.data_sets["owner/crawl"]["README.md"] = b"another commit, the same shards"
    assert identify(STEP, pin_repositories(STEP, settings), {}) == first
    hub.data_sets["owner/crawl"]["data/00000.tar"] = b"another shard"
    assert identify(STEP, pin_repositories(STEP, settings), {}) != first
