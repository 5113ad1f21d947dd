"""A level of hybrid trees in one native call is the one that the tensors give."""

import pytest
import torch

from eagle.trees import Draft, TreeBatch, TreeSettings, hybrid, native_level

LIBRARY = native_level.LIBRARY
pytestmark = pytest.mark.skipif(LIBRARY.unavailable is not None, reason=f"no native code: {LIBRARY.unavailable}")
SETTINGS = [
    TreeSettings(8, 4),
    TreeSettings(4, 3, beta=0.3, sharpness=0.8),
    TreeSettings(16, 5, 3, beta=0.5),
    TreeSettings(24, 7, beta=0.5, sharpness=1.3),
    TreeSettings(2, 1, beta=0.0),
    TreeSettings(30, 3, beta=1.0),
]


class RandomDrafter:
    """Logits that are a function of the node's token and depth alone; now and then a sharp row."""

    support = None

    def __init__(self, vocab: int, seed: int, dtype: torch.dtype):
        generator = torch.Generator().manual_seed(seed)
        scale = torch.rand(8, vocab, 1, generator=generator, dtype=dtype) * 8
        self.logits = torch.randn(8, vocab, vocab, generator=generator, dtype=dtype) * scale
        self.level = 0

    def rewind(self) -> None:
        self.level = 0

    def grow(self, _parents: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        self.level += 1
        return self.logits[self.level][tokens]


def trees(settings: TreeSettings, rows: int, seed: int, dtype: torch.dtype) -> TreeBatch:
    drafter = RandomDrafter(50, seed, dtype)
    generator = torch.Generator().manual_seed(seed)
    root = torch.randint(50, (rows,), generator=generator)
    numbers = torch.rand(rows, hybrid.uniforms(settings), generator=generator, dtype=torch.float64)
    draft = Draft(drafter, root, drafter.logits[0][root], lambda logits: logits.softmax(-1), numbers)
    return hybrid.build(draft, settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: f"{settings.nodes}x{settings.depth}")
def test_trees_are_those_of_the_tensors(settings, rows, dtype, monkeypatch):
    for seed in range(12):
        found = trees(settings, rows, seed, dtype)
        with monkeypatch.context() as patch:
            patch.setattr(LIBRARY, "unavailable", "not in this test")
            expected = trees(settings, rows, seed, dtype)
        for name in ("tokens", "parents", "depths"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), (seed, name)
        sampled = expected.proposal_rows >= 0
        assert torch.equal(found.proposal_rows.sign(), expected.proposal_rows.sign())
        row = torch.arange(rows)[:, None].expand_as(sampled)[sampled]
        ours, theirs = (tree.proposals[row, tree.proposal_rows[sampled]] for tree in (found, expected))
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-13)
