"""Lines of JSON on a disk that fills up."""

import errno
import io
import json

import pytest

from eagle import jsonl


class Full(io.RawIOBase):
    """Takes `room` bytes, then answers as a full disk does."""

    def __init__(self, room: int):
        self.room, self.content = room, b""

    def write(self, part) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = bytes(part[: self.room])
        self.room -= len(taken)
        self.content += taken
        return len(taken)


def test_a_line_that_no_longer_fits_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "answers.jsonl"
    with pytest.raises(OSError, match="free space and run again: .*answers.jsonl"):
        jsonl.append(Full(5), {"question_id": 1}, path)


def test_nothing_is_left_to_be_written_when_a_file_is_closed(tmp_path):
    """Where closing has to write, a full disk is an error there, without a name, which hides the first one."""
    path = tmp_path / "answers.jsonl"
    file = jsonl.open_locked(path)
    jsonl.append(file, {"question_id": 1}, path)
    file.write(b"torn")
    assert path.read_bytes() == b'{"question_id": 1}\ntorn'
    file.close()
    jsonl.recover(path)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"question_id": 1}]
