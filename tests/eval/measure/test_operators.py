"""`python -m eval.measure.operators`: every part of a step is there, and the model is left as it was."""

import pytest

from eval.measure import operators
from eval.run.load_models import load

TINY = ["--nodes", "5", "--depth", "2", "--context", "16", "--steps", "2"]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("temperature", "tree"), [("1", "hybrid"), ("0", "topk")])
def test_a_table_per_variant(pair_flags, capsys, temperature, tree):
    assert operators.main([*pair_flags, *TINY, "--temperature", temperature]) == 0
    plain, drafted = capsys.readouterr().out.split(f"\n{tree}, 5 nodes, depth 2")
    parts = lambda text: [line.split(" | ")[0].strip("| ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert parts(plain) == ["tree", "score", "verify", "commit", "step"]
    assert parts(drafted) == ["read", "pick 1", "grow 1", "tree", "score", "verify", "commit", "step"]


def test_counts_repeat_and_the_model_is_left_as_it_was(pair):
    model = load(str(pair / "target"), str(pair / "head"), "float32")
    steps = operators.RepeatedSteps(model, "hybrid", operators.build_parser().parse_args(TINY))
    first, second, third = (steps.operators() for _ in range(3))
    assert second == third
    assert set(first) == set(second)
    assert all(count > 0 for count in second.values())
    assert not {"score", "commit"} & set(vars(steps.session.target))
    assert not {"read", "grow"} & set(vars(steps.session.drafter))
