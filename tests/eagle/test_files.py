"""Files and directories are whole or absent."""

import errno
import os

import pytest
import torch
from safetensors.torch import save_file

from eagle import files
from eagle.files import parse_json, sole_writer, write_directory, write_file, write_json, write_whole


def dies(path):
    (path / "half" if path.is_dir() else path).write_text("half")
    raise OSError("disk full")


def test_a_file_is_replaced_whole(tmp_path):
    write_whole(tmp_path / "a/b.txt", "old")
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


def test_one_writer_at_a_time(tmp_path):
    output = tmp_path / "run"
    busy = pytest.raises(ValueError, match="run: another process is writing it")
    with sole_writer(output), busy, sole_writer(output):
        pass
    with sole_writer(output):
        pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="expected the name of a file or directory"):
        sole_writer("")


def test_a_full_disk_names_the_file(tmp_path):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    for write in (write_file, write_directory):
        with pytest.raises(OSError, match="No space left on device; free space and run again") as caught:
            write(tmp_path / "a", full)
        assert caught.value.filename == str(tmp_path / "a")


def test_other_libraries_errors_name_the_file(tmp_path):
    weights = {"w": torch.zeros(2)}
    for write in (save_file, torch.save):
        with pytest.raises(OSError, match="a: cannot be written"):
            write_directory(tmp_path / "a", lambda folder, write=write: write(weights, folder / "no" / "w"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["[" * 99999, "{", b"\xff", '{"a": 1}x'])
def test_what_is_no_json_is_a_value_error(text):
    with pytest.raises(ValueError, match="."):
        parse_json(text)


def test_a_device_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in (pipe, tmp_path):
        with pytest.raises(ValueError, match="something other than a file"):
            write_whole(place, "x")
    assert pipe.is_fifo()


def test_a_file_system_without_locks_is_not_another_process(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    with pytest.warns(UserWarning, match="cannot be locked .*; let no second process write it"):
        files.open_locked(tmp_path / "a.jsonl", "another process has it").close()
