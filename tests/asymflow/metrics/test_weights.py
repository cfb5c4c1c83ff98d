from types import SimpleNamespace

import pytest

from asymflow import hub
from asymflow.metrics import weights
from asymflow.metrics.weights import MissingWeights, find, find_tokenizer, identify


def test_identity_of_a_local_model_is_its_content(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"x" * 1000)
    a, b = (find(str(tmp_path / name), "a model") for name in ("a", "b"))
    assert a.path == tmp_path / "a"
    assert a.identity == b.identity
    (tmp_path / "b" / "model.safetensors").write_bytes(b"x" * 999 + b"y")
    assert find(str(tmp_path / "b"), "a model").identity != a.identity


def test_one_file_is_found_in_its_folder_or_by_its_own_path(tmp_path):
    (tmp_path / "head.pt").write_bytes(b"1")
    a, b = find(str(tmp_path), "a head", "head.pt"), find(str(tmp_path / "head.pt"), "a head", "head.pt")
    assert a == b
    assert a.path == tmp_path / "head.pt"


@pytest.mark.parametrize(
    ("source", "file", "says"),
    [("", "", "no model was named"), ("{}/none", "", "does not exist"), ("{}", "head.pt", "has no head.pt")],
)
def test_a_missing_model_names_the_needed_files(tmp_path, source, file, says):
    for search in (find, identify):
        with pytest.raises(MissingWeights, match=f"{says}.*needed is HPSv2's checkpoint"):
            search(source.format(tmp_path), "HPSv2's checkpoint", file)


def test_identity_of_a_repository_is_its_commit(monkeypatch, tmp_path):
    folder = tmp_path / "models--some--model" / "snapshots" / "abc123"
    folder.mkdir(parents=True)
    asked = []

    def fetch(repository, revision, allow_patterns):
        asked.append((repository, revision, allow_patterns))
        return str(folder)

    monkeypatch.setattr(weights, "snapshot_download", fetch)
    assert find("some/model", "a model", revision="v1").identity == "some/model@abc123"
    assert find("some/model@v1", "a model").identity == "some/model@abc123"
    assert asked[1][:2] == asked[0][:2]
    repository, revision, patterns = asked[0]
    assert (repository, revision) == ("some/model", "v1")
    assert not any("bin" in p or "pt" in p for p in patterns)


def test_an_unreachable_hub_is_a_one_line_error(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(weights, "hf_hub_download", fail)
    with pytest.raises(MissingWeights, match="some/model .*cannot be fetched, OSError: no network"):
        find("some/model", "a model", "head.pt")


def test_identity_does_not_depend_on_the_cache(monkeypatch, tmp_path):
    (tmp_path / "head.pt").write_bytes(b"1")
    assert identify(str(tmp_path), "a head", "head.pt") == find(str(tmp_path), "a head", "head.pt").identity
    folder = tmp_path / "models--some--model" / "snapshots" / "abc123"
    folder.mkdir(parents=True)
    said = {"v1": "abc123"}
    asked = SimpleNamespace(model_info=lambda source, revision, timeout: SimpleNamespace(sha=said[revision]))
    monkeypatch.setattr(hub, "HfApi", lambda: asked)
    monkeypatch.setattr(weights, "snapshot_download", lambda *args, **kwargs: str(folder))
    monkeypatch.setattr(weights, "hf_hub_download", lambda *args, **kwargs: str(folder / "head.pt"))
    for file in ("", "head.pt"):
        found = find("some/model", "a model", file, revision="v1")
        assert identify("some/model", "a model", file, revision="v1") == found.identity
        assert identify("some/model@v1", "a model", file) == found.identity
    with pytest.raises(MissingWeights, match="cannot be resolved .KeyError"):
        identify("some/model", "a model", revision="v2")


def test_a_folder_named_snapshots_further_up_is_not_the_commit(monkeypatch, tmp_path):
    folder = tmp_path / "snapshots" / "2024-05" / "models--some--model" / "snapshots" / "abc123"
    (folder / "sub").mkdir(parents=True)
    monkeypatch.setattr(weights, "snapshot_download", lambda *args, **kwargs: str(folder))
    monkeypatch.setattr(weights, "hf_hub_download", lambda repository, file, **kwargs: str(folder / file))
    assert find("some/model", "a model").identity == "some/model@abc123"
    assert find("some/model", "a head", "head.pt").identity == "some/model@abc123/head.pt"
    assert find("some/model", "a head", "sub/head.pt").identity == "some/model@abc123/sub/head.pt"


def test_a_tokenizer_without_its_vocabulary_is_refused(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(MissingWeights, match="has no tokenizer.json: needed is the words"):
        find_tokenizer(str(tmp_path), "the words", "main", ["*.json"])
    (tmp_path / "tokenizer.json").write_text("{}")
    assert find_tokenizer(str(tmp_path), "the words", "main", ["*.json"]).path == tmp_path
