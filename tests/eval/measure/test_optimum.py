"""`python -m eval.measure.optimum` on its smallest world."""

import pytest

from eagle.trees import TreeSettings
from eval.measure import optimum
from hsd.audit.exact import examine
from hsd.audit.worlds import random_world
from tests.reference.rule import by

pytest.importorskip("scipy")


def test_a_row_per_shape_and_tree(monkeypatch, capsys):
    monkeypatch.setattr(optimum, "SHAPES", optimum.SHAPES[:1])
    assert optimum.main(["--worlds", "1", "--trees", "hybrid", "rsd", "topk"]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.strip().splitlines()[2:]]
    assert [row[4] for row in rows] == ["hybrid", "rsd", "topk"]
    for row in rows:
        token, ours, best, seeing = map(float, row[5:9])
        assert 0 < token <= ours + 1e-9 <= best + 2e-9 <= seeing + 3e-9


def test_no_world_is_refused(capsys):
    assert optimum.main(["--worlds", "0"]) == 2
    assert "--worlds 0: expected a whole number, 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "hsd", "leaves_last", "best"),
    [
        (TreeSettings(4, 2, beta=0.8), 1.2797, 1.3131, 1.3134),
        (TreeSettings(5, 3, beta=0.8), 1.4583, 1.5338, 1.5344),
    ],
)
def test_what_an_order_of_visits_gains_on_the_real_hybrid_builder(settings, hsd, leaves_last, best):
    """The figures of docs/verifiers.md; the rule is exact there, although cousins' tokens decide who has children."""
    accepted = {"hsd": 0.0, "leaves_last": 0.0, "best": 0.0}
    for seed in range(4):
        world = random_world("toy", 3, settings.depth, seed)
        drafts = optimum.merged(optimum.drafts(world, settings, "hybrid"))
        accepted["best"] += optimum.optimum([world], [drafts]) / 4
        for name in ("hsd", "leaves_last"):
            found = examine(world, drafts, by(name))
            assert found.error < 1e-12
            accepted[name] += found.accepted / 4
    assert accepted == pytest.approx({"hsd": hsd, "leaves_last": leaves_last, "best": best}, abs=1e-4)
