import pytest

from asymflow.adapters import hub


def test_folders_are_used_in_place_and_repositories_are_fetched(tmp_path, monkeypatch):
    asked = []

    def fetch(repository, **options):
        asked.append((repository, options))
        return str(tmp_path / "fetched")

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    assert hub.local_folder(tmp_path) == tmp_path
    assert not asked
    options = {"token": "t", "cache_dir": "c", "dtype": "float32", "text_encoder": None}
    assert hub.local_folder("owner/name", "abc", options) == tmp_path / "fetched"
    ((repository, given),) = asked
    assert repository == "owner/name"
    assert given == {
        "revision": "abc",
        "token": "t",
        "cache_dir": "c",
        "allow_patterns": ["*.json", "*.safetensors", "*.pth"],
    }


@pytest.mark.parametrize("path", ["./absent", "/absent/folder", "absent", "a/b/c", "~/x", "models/absent", "/x"])
def test_a_missing_path_is_not_a_repository(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    monkeypatch.setattr(hub, "snapshot_download", lambda *a, **k: pytest.fail("a hub was asked"))
    with pytest.raises(ValueError, match="there is no adapter folder at"):
        hub.local_folder(path)
