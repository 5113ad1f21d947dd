"""What a GPU computes against float64 on the CPU: stopping distributions, residuals, attention in two parts.

`HSD_GPU_TESTS_ON=cpu` rehearses these tests without one, on small sizes.
"""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import scaled_dot_product_attention

import hsd
from eagle.nn import tree_attention
from eval.measure import verification

DEVICE = torch.device(os.environ.get("HSD_GPU_TESTS_ON", "cuda"))
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"),
]
VOCABULARIES = (128_256, 32_000) if DEVICE.type == "cuda" else (500, 200)
RECORDED = load_file(Path(__file__).parents[2] / "golden" / "trees.safetensors")
EXACT = 1e-5  # largest difference of a probability


def placed(tree: hsd.DraftTree, device: torch.device, dtype: torch.dtype) -> hsd.DraftTree:
    """The same tree on a device, its draft distributions in `dtype`."""
    proposals = None if tree.proposals is None else tree.proposals.to(device, dtype)
    support = None if tree.support is None else tree.support.to(device)
    tokens, parents, rows = (x.to(device) for x in (tree.tokens, tree.parents, tree.proposal_rows))
    return hsd.DraftTree(tokens, parents, rows, proposals, support, tree.layout)


def recorded_tree(name: str) -> tuple[hsd.DraftTree, torch.Tensor]:
    fields = [
        RECORDED.get(f"{name}.{field}") for field in ("tokens", "parents", "proposal_rows", "proposals", "support")
    ]
    return hsd.DraftTree(*fields), RECORDED[f"{name}.target_probs"]


def check_exact(tree: hsd.DraftTree, probs: torch.Tensor) -> None:
    chain = tree.parents.tolist() == list(range(-1, len(tree) - 1))
    for verifier in ["hsd", "token", *(["block"] if chain else [])]:
        exact = hsd.stopping_law(placed(tree, torch.device("cpu"), torch.float64), probs.double(), verifier)
        found = hsd.stopping_law(placed(tree, DEVICE, torch.float32), probs.float().to(DEVICE), verifier)
        likely = int(exact.stop.argmax())
        for one, other in ((found.stop, exact.stop), (found.residual(likely), exact.residual(likely))):
            assert (one.double().cpu() - other).abs().max() <= EXACT


@pytest.mark.parametrize("name", sorted({key.split(".")[0] for key in RECORDED}))
def test_recorded_trees_are_exact(name):
    check_exact(*recorded_tree(name))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("width", VOCABULARIES)
def test_random_trees_of_sixty_nodes_are_exact(seed, width):
    tree, logits = verification.hybrid_tree(VOCABULARIES[0], width, "cpu", seed)
    check_exact(tree, logits.softmax(-1))


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_a_training_script_s_settings_change_nothing(precision):
    tree, logits = verification.hybrid_tree(VOCABULARIES[0], VOCABULARIES[1], "cpu")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            check_exact(tree, logits.softmax(-1))
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize("context", [512, 8192] if DEVICE.type == "cuda" else [80])
def test_attention_in_two_parts_is_masked_attention(context):
    nodes, slots, generator = 60, 60 + context + context // 8, torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    draw = lambda heads, length: torch.randn(1, heads, length, 128, generator=generator).to(DEVICE, dtype)
    query, keys, values = draw(32, nodes), draw(8, slots), draw(8, slots)
    ancestors = hsd.ancestors_of(verification.hybrid_tree(64, 64, "cpu")[0].parents)
    committed = (torch.arange(slots - nodes) < context).expand(nodes, -1)
    visible = torch.cat([ancestors, committed], -1)[None, None].to(DEVICE)
    mask = torch.zeros(visible.shape, device=DEVICE).masked_fill_(~visible, torch.finfo(dtype).min)
    exact = scaled_dot_product_attention(
        query.float(), keys.float(), values.float(), attn_mask=mask.float(), enable_gqa=True
    )
    usual = scaled_dot_product_attention(query, keys, values, attn_mask=mask.to(dtype), enable_gqa=True)
    found, _ = tree_attention.split_prefix(
        None, query, keys, values, mask[..., :nodes], prefix_lengths=torch.tensor([context], device=DEVICE)
    )
    difference = (found.transpose(1, 2).float() - exact).abs().max()
    assert difference <= (1e-4 if dtype == torch.float32 else 2 * (usual.float() - exact).abs().max() + 4e-3)
