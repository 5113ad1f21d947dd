"""Comparing heads on the same prompts."""

from transformers import AutoModelForCausalLM

from eagle.checkpoints.load import save_head
from eagle.train.evaluation import compare
from eagle.train.setup import fresh_head


def test_table(capsys, settings, tiny_target, tiny_data, tmp_path):
    target = AutoModelForCausalLM.from_pretrained(tiny_target)
    for seed in range(2):
        save_head(fresh_head(settings(tmp_path, seed=seed), target, []), tmp_path / f"head{seed}", 6)
    heads = [str(tmp_path / "head0"), str(tmp_path / "head1"), str(tmp_path / "head0")]
    arguments = [str(tiny_target), *heads, "--data", str(tiny_data), "--prompts", "3", "--tokens", "8", "--nodes", "8"]
    assert compare.main([*arguments, "--depth", "3"]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| /")]
    assert len(rows) == 6
    assert [row[1:] for row in rows[:2]] == [row[1:] for row in rows[4:]]  # the same head, the same numbers
    assert rows[1][3] != rows[3][3]  # at temperature 1; at 0 untrained heads are both at nought
