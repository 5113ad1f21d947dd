"""What one verification costs, in softmaxes of the same logits.

    OMP_NUM_THREADS=2 python -m eval.measure.verification                 CPU
    python -m eval.measure.verification --device cuda --graph             one GPU, `hsd.decide` in a CUDA graph

A hybrid tree of 60 nodes (7 levels; every level has sampled children, verified first, and top-k ones).
Timed in one process, alternating, medians of `--repeats`:

    softmax   torch.softmax of the [60, V] float32 logits: what any method pays for the target distributions
    verify    hsd.verify(tree, probs, check=False) per verifier: stopping distribution, both draws, the path
    tensor loop   accept/reject one child at a time, with a vocabulary-wide tensor operation and a host
                  synchronisation per decision, as HF-level implementations do
    scalar loop   the same loop in Python floats, the conversion of its inputs excluded
"""

import argparse
import json
import platform
import random
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

import hsd
from eagle import command
from eagle.files import check_writable, write_whole
from eval.report.markdown import markdown_table
from eval.run.methods import seconds_of

SIZES = (9, 9, 9, 8, 8, 8, 8)


def hybrid_tree(
    vocabulary: int, draft_vocabulary: int, device: str, seed: int = 0
) -> tuple[hsd.DraftTree, torch.Tensor]:
    """A DraftTree with its layout, and target logits Float32[60, V]. q is p with noise on its logits."""
    generator = torch.Generator().manual_seed(seed)
    nodes = 1 + sum(SIZES)
    logits = 3 * torch.randn(nodes, vocabulary, generator=generator)
    support = torch.randperm(vocabulary, generator=generator)[:draft_vocabulary].sort().values
    draft = (logits[:, support] + 0.5 * torch.randn(nodes, draft_vocabulary, generator=generator)).softmax(-1)
    tokens, parents, rows, counts = [0], [-1], [-1], []
    proposals: list[torch.Tensor] = []
    level = [0]
    for size in SIZES:
        sampling = level[: max(1, size // 2)]
        top_k_at = [level[i % len(level)] for i in range(size - len(sampling))]
        top_k = {v: draft[v].topk(top_k_at.count(v)).indices.tolist() for v in set(top_k_at)}
        start = len(tokens)
        for v in sampling:
            d = draft[v].index_fill(0, torch.tensor(top_k.get(v, []), dtype=torch.int64), 0)
            d = d / d.sum()
            tokens.append(int(hsd.draw(d, torch.rand((), dtype=torch.float64, generator=generator))))
            parents.append(v)
            rows.append(len(proposals))
            proposals.append(d)
        for v in top_k_at:
            tokens.append(top_k[v].pop(0))
            parents.append(v)
            rows.append(-1)
        counts.append(len(sampling))
        level = list(range(start, len(tokens)))
    token_ids = support[torch.tensor(tokens)]
    full = draft_vocabulary == vocabulary
    tree = hsd.DraftTree(
        token_ids.to(device),
        torch.tensor(parents, device=device),
        torch.tensor(rows, device=device),
        torch.stack(proposals).to(device),
        None if full else support.to(device),
        hsd.Layout.levels(SIZES, counts),
    )
    return tree, logits.to(device)


def tensor_loop(tree: hsd.DraftTree, p: torch.Tensor) -> tuple[int, int]:
    """(stopping node, bonus token) by branch-wise HSD, one decision at a time on tensors. Full-vocabulary proposals."""
    parents, proposals = tree.parents.tolist(), tree.proposals
    assert proposals is not None

    def proposal(child: int) -> torch.Tensor:
        row = int(tree.proposal_rows[child])
        if row >= 0:
            return proposals[row]
        return torch.zeros_like(p[0]).index_fill(0, tree.tokens[child], 1)

    def visit(node: int, w: float) -> tuple[int, torch.Tensor] | None:
        r = p[node]
        for child in (i for i, parent in enumerate(parents) if parent == node):
            d, x = proposal(child), tree.tokens[child]
            kept = visit(child, min(1.0, (w * r[x] / d[x]).item()))
            if kept is not None:
                return kept
            excess = (w * r - d).clamp(min=0)
            total = excess.sum().item()
            r, w = excess / max(total, 1e-30), total / max(total + 1 - w, 1e-30)
        return (node, r) if node == 0 or torch.rand(()).item() < w else None

    kept = visit(0, 1.0)
    assert kept is not None  # the root always accepts
    return kept[0], int(torch.multinomial(kept[1], 1))


class PlainTree(NamedTuple):
    """A tree and its target distributions as Python numbers; `proposals` dense on the target's vocabulary."""

    tokens: list[int]
    children: list[list[int]]
    rows: list[int]
    proposals: list[list[float]]
    target: list[list[float]]


def plain_tree(tree: hsd.DraftTree, p: torch.Tensor) -> PlainTree:
    """The conversion that the scalar loop's time leaves out."""
    children: list[list[int]] = [[] for _ in range(len(tree))]
    for child, parent in enumerate(tree.parents.tolist()[1:], 1):
        children[parent].append(child)
    dense = tree.proposals
    assert dense is not None
    if tree.support is not None:
        dense = torch.zeros(len(dense), p.shape[1], device=p.device).index_copy(1, tree.support, dense)
    return PlainTree(tree.tokens.tolist(), children, tree.proposal_rows.tolist(), dense.tolist(), p.tolist())


def scalar_loop(tree: PlainTree, rng: random.Random) -> tuple[int, int]:
    """(stopping node, bonus token) by branch-wise HSD in Python floats."""

    def visit(node: int, w: float) -> tuple[int, list[float]] | None:
        r = tree.target[node]
        for child in tree.children[node]:
            x, row = tree.tokens[child], tree.rows[child]
            d = tree.proposals[row] if row >= 0 else [float(token == x) for token in range(len(r))]
            kept = visit(child, min(1.0, w * r[x] / d[x]))
            if kept is not None:
                return kept
            excess = [max(w * a - b, 0.0) for a, b in zip(r, d, strict=True)]
            total = sum(excess)
            r, w = [value / max(total, 1e-30) for value in excess], total / max(total + 1 - w, 1e-30)
        return (node, r) if node == 0 or rng.random() < w else None

    kept = visit(0, 1.0)
    assert kept is not None  # the root always accepts
    return kept[0], rng.choices(range(len(kept[1])), kept[1])[0]


def captured(action: Callable[[], object]) -> Callable[[], None]:
    """The action as a CUDA graph replay. A host synchronisation inside would make the capture fail."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            action()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = action()
    reads = (action, found)  # a replay reads and writes their memory: it must not be anybody else's before the last one

    def replay() -> None:
        assert reads
        graph.replay()

    return replay


def timed_actions(
    tree: hsd.DraftTree, logits: torch.Tensor, args: argparse.Namespace
) -> dict[str, Callable[[], object]]:
    """Name -> what is timed."""
    probs, batch = logits.softmax(-1), hsd.TreeBatch.of_one(tree)
    generator = torch.Generator().manual_seed(0)
    uniforms = torch.rand(1, hsd.DRAWS, dtype=torch.float64, generator=generator).to(args.device)
    actions: dict[str, Callable[[], object]] = {"softmax": lambda: logits.softmax(-1)}
    for name in (name for name, verifier in hsd.VERIFIERS.items() if verifier.scope != "path"):
        actions[f"verify {name}"] = partial(hsd.verify, tree, probs, name, generator, check=False)
        if args.graph:
            actions[f"graph {name}"] = captured(partial(hsd.decide, batch, probs[None], name, uniforms))
    if tree.support is None:
        actions["tensor loop"] = lambda: tensor_loop(tree, probs)
    if args.scalar:
        plain, rng = plain_tree(tree, probs), random.Random(0)
        actions["scalar loop"] = lambda: scalar_loop(plain, rng)
    return actions


def measure(actions: dict[str, Callable[[], object]], args: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds per call, in alternating rounds; the scalar loop takes seconds and gets five."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for name, action in actions.items():
        if name != "scalar loop":
            action()
    for turn in range(args.repeats):
        for name, action in actions.items():
            if name != "scalar loop" or turn < 5:
                times[name].append(1e3 * seconds_of(action, args.device))
    return times


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = command.parser("eval.measure.verification", __doc__)
    parser.add_argument("--vocabulary", type=command.COUNT, default=128_256)
    parser.add_argument("--draft-vocabulary", type=command.COUNT, nargs="+", default=[128_256, 32_000])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--graph", action="store_true", help="also time hsd.decide from a CUDA graph")
    parser.add_argument("--repeats", type=command.COUNT, default=21)
    parser.add_argument("--no-scalar", dest="scalar", action="store_false", help="leave the scalar loop out")
    parser.add_argument("--output", "--json", type=Path, metavar="FILE", help="write medians and the machine to FILE")
    return parser


def measured_rows(args: argparse.Namespace) -> list[dict]:
    """One row per draft vocabulary and action: the median and its multiples of a softmax and of `verify hsd`."""
    rows = []
    for width in args.draft_vocabulary:
        tree, logits = hybrid_tree(args.vocabulary, width, args.device)
        times = measure(timed_actions(tree, logits, args), args)
        medians = {name: statistics.median(values) for name, values in times.items()}
        for name, value in medians.items():
            rows.append(
                {
                    "draft_vocabulary": width,
                    "what": name,
                    "median_ms": value,
                    "softmaxes": value / medians["softmax"],
                    "hsd_verifications": value / medians["verify hsd"],
                }
            )
    return rows


def table(rows: list[dict]) -> str:
    """Markdown: a row per draft vocabulary and action."""
    cells = [
        [
            f"{row['draft_vocabulary']:,}",
            row["what"],
            *(f"{row[name]:.2f}" for name in ("median_ms", "softmaxes", "hsd_verifications")),
        ]
        for row in rows
    ]
    return markdown_table(["q lives on", "what", "median ms", "softmaxes", "x verify hsd"], cells)


def run(args: argparse.Namespace) -> None:
    """Measure, print the table, write the rows."""
    if args.output:
        check_writable(args.output)
    machine = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or "CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "repeats": args.repeats,
    }
    rows = measured_rows(args)
    print(
        f"{1 + sum(SIZES)} nodes, {args.vocabulary:,} tokens, float32; {machine['device']}, "
        f"{machine['threads']} threads, torch {machine['torch']}, n = {args.repeats}\n\n{table(rows)}"
    )
    if args.output:
        write_whole(args.output, json.dumps({**machine, "rows": rows}, indent=1))


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command.start(build_parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
