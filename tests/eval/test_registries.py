"""A verifier or tree that is entered in its registry is offered by flags, named as lossy, and drawn."""

import importlib

import pytest

import hsd
from eagle.trees import TREES
from eval import flags
from eval.report import plots
from eval.run import methods


@pytest.fixture
def entered(monkeypatch):
    """A lossy verifier of paths, a lossless one of trees, and a tree of one path, as their files would enter them."""
    monkeypatch.setitem(hsd.VERIFIERS, "always", hsd.VERIFIERS["published"])
    monkeypatch.setitem(hsd.VERIFIERS, "other", hsd.VERIFIERS["token"])
    monkeypatch.setitem(TREES, "line", TREES["chain"])
    importlib.reload(methods)
    importlib.reload(flags)
    yield
    monkeypatch.undo()
    importlib.reload(methods)
    importlib.reload(flags)


@pytest.mark.usefixtures("entered")
def test_what_is_entered_is_offered():
    assert methods.verifiers_of("line") == methods.verifiers_of("chain")
    assert {"always", "other"} <= set(methods.verifiers_of("line"))
    assert "always" not in methods.verifiers_of("hybrid")
    assert methods.resolve("line+always").lossy
    assert not methods.resolve("hybrid+other").lossy
    options = flags.build_parser().parse_args(["--bench", "gsm8k", "--tree", "line", "--verifier", "always"])
    assert methods.from_flags(options.tree, options.verifier).lossy
    assert "always" in flags.build_parser().format_help()


@pytest.mark.usefixtures("entered")
def test_what_is_entered_has_a_look_of_its_own():
    row = lambda tree, verifier: {"tree": tree, "verifier": verifier, "lossy": not hsd.VERIFIERS[verifier].lossless}
    seen = {(*plots.color(one), str(plots.look(one)[1])) for one in (row("chain", name) for name in hsd.VERIFIERS)}
    assert len(seen) == len({plots.LOSSY, plots.OTHER, *plots.LOOKS.values()})
    assert plots.hue(row("line", "hsd")) not in {plots.hue(row(tree, "hsd")) for tree in plots.TREE_COLORS}
    assert plots.look({"tree": "none", "verifier": "none", "lossy": False}) == (1.0, "-")
