"""`python -m eval.trees.draw` on a tiny pair."""

import pytest

from eval.trees import draw


def test_a_picture_is_written(pair_flags, tmp_path, capsys):
    path = tmp_path / "tree.png"
    assert draw.main([*pair_flags, "--nodes", "6", "--depth", "2", "--output", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert str(path) in capsys.readouterr().out


@pytest.mark.parametrize("place", ["file/tree.png", "folder"])
def test_an_unwritable_place_is_refused_before_the_model_is_loaded(tmp_path, capsys, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    output = str(tmp_path / place)
    assert draw.main(["--base-model-path", "nowhere", "--ea-model-path", "nowhere", "--output", output]) == 2
    assert f"{output}: cannot be written" in capsys.readouterr().err
