"""Files and directories are whole or absent."""

import pytest

from eagle.files import write_directory, write_file, write_json, write_text


def dies(path):
    (path / "half" if path.is_dir() else path).write_text("half")
    raise OSError("disk full")


def test_a_file_is_replaced_whole(tmp_path):
    write_text(tmp_path / "a/b.txt", "old")
    with pytest.raises(OSError, match="disk full"):
        write_file(tmp_path / "a/b.txt", dies)
    assert (tmp_path / "a/b.txt").read_text() == "old"
    write_json(tmp_path / "a/b.txt", {"x": 1})
    assert (tmp_path / "a/b.txt").read_text() == '{\n  "x": 1\n}\n'
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]


def test_a_directory_appears_when_it_is_complete(tmp_path):
    with pytest.raises(OSError, match="disk full"):
        write_directory(tmp_path / "d", dies)
    assert not (tmp_path / "d").exists()
    write_directory(tmp_path / "d", lambda path: (path / "whole").write_text("x"))
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["whole"]
