"""Where numbers come from, and that it can be shown to others."""

from eval import provenance


def test_a_session_says_what_made_it():
    found = provenance.provenance(["eval", "--bench", "gsm8k"])
    assert found["argv"] == ["eval", "--bench", "gsm8k"]
    assert found["versions"]["torch"]
    assert found["hardware"]["cores"]
    assert found["hardware"]["cpu"]
    assert set(found["git"]) == {"commit", "dirty"}


def test_this_machine_s_directories_are_left_out(monkeypatch):
    monkeypatch.setenv("HSD_DATA", "/somewhere/data/")
    assert provenance.portable("/somewhere/data/gsm8k/test.jsonl") == "$HSD_DATA/gsm8k/test.jsonl"
    assert provenance.portable(f"{provenance.REPOSITORY}/eval/__main__.py") == "./eval/__main__.py"
    assert provenance.portable("checkpoints/demo/target") == "checkpoints/demo/target"


def test_a_directory_inside_another_name_stays(monkeypatch):
    monkeypatch.setenv("HOME", "/root")
    assert provenance.portable("--target=/root/model") == "--target=~/model"
    for path in ("/home/root/model", "/rooted/model", "/root.old/model"):
        assert provenance.portable(path) == path


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setattr(provenance, "git", lambda *_: None)
    assert provenance.commit() == {"commit": None, "dirty": None}
