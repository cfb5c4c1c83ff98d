from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from asymflow import hub
from asymflow.hub import is_repository, repository_of, resolve_commit

COMMIT, OTHER = "a" * 40, "b" * 40


def no_answer(*args, **options):
    raise OSError("no\nnetwork")


def test_repositories_may_name_a_revision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_repository("owner/name")
    assert is_repository("owner/name@v1")
    assert is_repository("owner/name@refs/pr/1")
    assert not any(map(is_repository, ("./name", "~/name", "a/b/c", "name", "s3://bucket/x", "/x", "")))
    assert repository_of("owner/name@v1") == ("owner/name", "v1")
    assert repository_of("owner/name") == ("owner/name", "main")


def test_a_revision_is_the_commit_that_the_hub_says(monkeypatch):
    said = {"main": COMMIT, "v1": OTHER}
    api = SimpleNamespace(model_info=lambda name, revision, timeout: SimpleNamespace(sha=said[revision]))
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    assert resolve_commit("owner/name") == COMMIT
    assert resolve_commit("owner/name@v1") == OTHER
    said["main"] = OTHER  # it moved
    assert resolve_commit("owner/name") == OTHER


def test_without_an_answer_it_is_the_cached_one_or_an_error(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(hub, "HfApi", lambda: SimpleNamespace(model_info=no_answer))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    message = "^owner/name .main. cannot be resolved .OSError: no network.; give owner/name@COMMIT$"
    with pytest.raises(ValueError, match=message):
        resolve_commit("owner/name")
    refs = tmp_path / "models--owner--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(COMMIT)
    assert resolve_commit("owner/name") == COMMIT
    assert "no answer from the hub" in caplog.text
    assert resolve_commit(f"owner/name@{OTHER}") == OTHER  # nobody is asked
