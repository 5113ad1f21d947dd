"""`python -m eval.measure.tree_picture` on a tiny pair; the picture says what the stopping law says."""

import pytest
import torch

from eagle import EagleModel, SamplingParams
from eagle.trees import TreeSettings
from eval.measure import tree_picture
from tests.eagle.tiny import tiny_head, tiny_target

PROMPT, SETTINGS = [3, 1, 4, 1, 5], TreeSettings(12, 4)


@pytest.fixture(scope="module", params=[60, 40], ids=["same vocabulary", "smaller draft vocabulary"])
def model(request):
    target = tiny_target()
    return EagleModel.from_head(target, tiny_head(target, draft_vocab=request.param))


def test_a_picture_is_written(pair_flags, tmp_path, capsys):
    path = tmp_path / "tree.png"
    assert tree_picture.main([*pair_flags, "--nodes", "6", "--depth", "2", "--output", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert str(path) in capsys.readouterr().out


@pytest.mark.parametrize("place", ["file/tree.png", "folder"])
def test_an_unwritable_place_is_refused_before_the_model_is_loaded(tmp_path, capsys, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    output = str(tmp_path / place)
    assert tree_picture.main(["--base-model-path", "nowhere", "--ea-model-path", "nowhere", "--output", output]) == 2
    assert f"{output}: cannot be written" in capsys.readouterr().err


def test_the_pictures_weights_are_those_of_verification(model):
    """A leaf that is visited first stops with its weight; every drawn leaf's weight bounds its stop probability."""
    generator = torch.Generator().manual_seed(0)
    drafted = tree_picture.draft_step(model, PROMPT, SamplingParams(1.0), "hybrid", SETTINGS, "hsd", 0, generator)
    law, weights = drafted.stopping_law("hsd"), tree_picture.node_weights(drafted.tree, drafted.target_probs)
    parents = set(drafted.tree.parents.tolist())
    leaf = 0
    while leaf in parents:  # the first child of the first child ...: first in post-order
        leaf = (drafted.tree.parents == leaf).nonzero()[0, 0].item()
    assert law.stop[leaf].item() == pytest.approx(weights[leaf], abs=1e-5)
    assert all(law.stop[node].item() <= weight + 1e-5 for node, weight in enumerate(weights) if node)


@pytest.mark.parametrize(("tree", "verifier"), [("hybrid", "hsd"), ("topk", "token"), ("chain", "block")])
def test_a_drafted_step_is_drawn(model, tmp_path, tree, verifier):
    generator = torch.Generator().manual_seed(4)
    drafted = tree_picture.draft_step(model, PROMPT, SamplingParams(1.0), tree, SETTINGS, verifier, 2, generator)
    picture = tree_picture.describe(drafted, verifier, generator, None, "$a tree$")
    assert len(picture.nodes) == len(drafted.tree)
    assert sum(node.stop for node in picture.nodes) == pytest.approx(1, abs=1e-4)
    accepted = [node for node in picture.nodes if node.accepted]
    assert accepted[0].parent == -1 and [node.depth for node in accepted] == list(range(len(accepted)))
    tree_picture.render(picture, tmp_path / "tree.png")
    assert (tmp_path / "tree.png").read_bytes()[:4] == b"\x89PNG"


def test_leaves_lie_one_below_another():
    node = lambda parent, depth: tree_picture.Node(parent, depth, "", False, 1.0, 1.0, None, 0.0, False)
    assert tree_picture.place([node(-1, 0), node(0, 1), node(0, 1), node(1, 2), node(1, 2)]) == [
        1.25,
        0.5,
        2.0,
        0.0,
        1.0,
    ]


def test_a_step_past_the_answers_end_is_refused(model):
    with pytest.raises(ValueError, match="--skip"):
        tree_picture.draft_step(
            model, PROMPT, SamplingParams(1.0), "chain", SETTINGS, "hsd", 999, torch.Generator().manual_seed(0)
        )
