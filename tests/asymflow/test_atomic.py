import pytest

from asymflow.atomic import atomic_file, atomic_folder


def test_a_file_appears_complete_and_nothing_is_left_of_a_failure(tmp_path):
    path = tmp_path / "made" / "file"
    with atomic_file(path) as partial:
        partial.write_text("old")
        assert not path.exists()
    with pytest.raises(RuntimeError), atomic_file(path) as partial:
        partial.write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").write_text("")
    with pytest.raises(RuntimeError), atomic_folder(folder) as partial:
        (partial / "half").write_text("")
        raise RuntimeError
    assert [path.name for path in folder.iterdir()] == ["old"]
    with atomic_folder(folder) as partial:
        (partial / "new").write_text("")
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [folder]
