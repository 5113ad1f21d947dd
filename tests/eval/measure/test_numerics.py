"""`python -m eval.measure.numerics` on a tiny pair."""

import json

import pytest
import torch

from eval.measure import numerics
from eval.run.load_models import load


def test_a_row_per_dtype(pair_flags, tmp_path, capsys):
    path = tmp_path / "numerics.json"
    sizes = ["--num-questions", "2", "--max-new-tokens", "12", "--rows", "4"]
    assert numerics.main([*pair_flags, *sizes, "--dtypes", "float32", "--output", str(path)]) == 0
    written = json.loads(path.read_text(encoding="utf-8"))
    (row,) = written["rows"]
    assert (row["dtype"], row["questions"]) == ("float32", 2)
    assert row["logits"][1] < 1e-3
    assert row["topk"] == []
    assert "git" in written["origin"]
    assert "| float32 |" in capsys.readouterr().out


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_logits_are_those_of_one_forward(pair, rows):
    target = load(str(pair / "target"), None, "float32").target
    prompt, answer = [3, 1, 4, 1, 5], [9, 2, 6, 5, 3, 5, 8]
    found = numerics.read(target, prompt, answer, rows)
    with torch.inference_mode():
        whole = target.model(torch.tensor([prompt + answer])).logits[0]
    torch.testing.assert_close(found, whole[len(prompt) - 1 : -1], atol=1e-4, rtol=1e-4)


def test_where_answers_part():
    assert numerics.parting([1, 2, 3], [1, 2, 3]) is None
    assert numerics.parting([1, 2, 3], [1, 5, 3]) == 1
    assert numerics.parting([1, 2], [1, 2, 3]) == 2
    assert numerics.margin(torch.tensor([[1.0, 4.0, 2.5], [0.0, 0.0, 1.0]]), 0) == 1.5
