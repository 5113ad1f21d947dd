"""The demo corpus: what is read, what is held out, what is never opened."""

import json

import pytest

from eagle.train.demo.corpus import HOLD_OUT_EVERY, demo_conversations, demo_sources, main


@pytest.fixture
def data_dir(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "flan_cot").mkdir()
    rows = [{"question": f"q{i}?", "answer": f"1+1=<<1+1=2>>2\n#### {i}"} for i in range(45)]
    (tmp_path / "gsm8k/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "gsm8k/test.jsonl").write_text("never read")
    (tmp_path / "flan_cot/a_train.tsv").write_text("ask\\nme\tyes\tbecause\nbroken line\n")
    return tmp_path


def test_one_question_in_twenty_is_held_out(data_dir):
    train, held_out = demo_conversations(data_dir)
    assert [item[0]["content"] for item in held_out] == ["q0?", "q20?", "q40?"]
    assert len(train) == 45 - len(held_out) + 1
    assert HOLD_OUT_EVERY == 20
    assert not {item[0]["content"] for item in train} & {item[0]["content"] for item in held_out}


def test_marks_are_removed_and_rationales_come_first(data_dir):
    sources = demo_sources(data_dir)
    assert sources["gsm8k"][0][1]["content"] == "1+1=2\n#### 1"
    assert [m["content"] for m in sources["flan_cot"][0]] == ["ask\nme", "because\n#### yes"]


def test_another_directory(tmp_path):
    with pytest.raises(ValueError, match="expected gsm8k/train.jsonl"):
        demo_sources(tmp_path)


def test_the_command_writes_three_files(data_dir, tmp_path, capsys):
    assert main([str(data_dir), str(tmp_path / "out")]) == 0
    lines = {path.stem: path.read_text().splitlines() for path in (tmp_path / "out").iterdir()}
    assert {name: len(rows) for name, rows in lines.items()} == {"gsm8k": 42, "flan_cot": 1, "held_out": 3}
    assert "held_out.jsonl: 3 conversations" in capsys.readouterr().out
    assert main([str(tmp_path / "none"), str(tmp_path / "out")]) == 2
    assert "error: data directory" in capsys.readouterr().err
