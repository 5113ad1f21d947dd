"""What one verification costs, in softmaxes of the same logits.

    OMP_NUM_THREADS=2 python -m eval.speed.verification                 CPU
    python -m eval.speed.verification --device cuda --graph             one GPU, `hsd.decide` in a CUDA graph

A hybrid tree of 60 nodes (7 levels; every level has sampled children, verified first, and chosen ones).
Timed in one process, alternating, medians of `--repeats`:

    softmax   torch.softmax of the [60, V] float32 logits: what any method pays for the target's laws
    verify    hsd.verify(tree, probs, check=False) per verifier: laws, both draws, the path
    tensor loop   accept/reject one child at a time, with a vocabulary-wide tensor operation and a host
                  synchronisation per decision, as HF-level implementations do
    scalar loop   accept/reject in Python floats (tests/reference/scalar.py), its inputs' conversion excluded
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable

import torch

import hsd
from tests.reference import scalar

SIZES = (9, 9, 9, 8, 8, 8, 8)


def hybrid_tree(vocabulary: int, draft_vocabulary: int, device: str, seed: int = 0):
    """-> (DraftTree with its layout, target logits Float32[60, V]). q is p with noise on its logits."""
    generator = torch.Generator().manual_seed(seed)
    nodes = 1 + sum(SIZES)
    logits = 3 * torch.randn(nodes, vocabulary, generator=generator)
    support = torch.randperm(vocabulary, generator=generator)[:draft_vocabulary].sort().values
    draft = (logits[:, support] + 0.5 * torch.randn(nodes, draft_vocabulary, generator=generator)).softmax(-1)
    tokens, parents, rows, laws, counts = [0], [-1], [-1], [], []
    level = [0]
    for size in SIZES:
        sampling = level[: max(1, size // 2)]
        chosen_at = [level[i % len(level)] for i in range(size - len(sampling))]
        chosen = {v: draft[v].topk(chosen_at.count(v)).indices.tolist() for v in set(chosen_at)}
        start = len(tokens)
        for v in sampling:
            law = draft[v].index_fill(0, torch.tensor(chosen.get(v, []), dtype=torch.int64), 0)
            law = law / law.sum()
            tokens.append(int(hsd.draw(law, generator)))
            parents.append(v)
            rows.append(len(laws))
            laws.append(law)
        for v in chosen_at:
            tokens.append(chosen[v].pop(0))
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
        torch.stack(laws).to(device),
        None if full else support.to(device),
        hsd.Layout.levels(SIZES, counts),
    )
    return tree, logits.to(device)


def tensor_loop(tree: hsd.DraftTree, p: torch.Tensor) -> tuple[int, int]:
    """Branch-wise HSD, one decision at a time on tensors. Full-vocabulary proposals."""
    parents = tree.parents.tolist()

    def law(child: int) -> torch.Tensor:
        row = int(tree.proposal_rows[child])
        if row >= 0:
            return tree.proposals[row]
        return torch.zeros_like(p[0]).index_fill(0, tree.tokens[child], 1)

    def visit(node: int, w: float) -> tuple[int, torch.Tensor] | None:
        r = p[node]
        for child in (i for i, parent in enumerate(parents) if parent == node):
            d, x = law(child), tree.tokens[child]
            kept = visit(child, min(1.0, (w * r[x] / d[x]).item()))
            if kept is not None:
                return kept
            excess = (w * r - d).clamp(min=0)
            total = excess.sum().item()
            r, w = excess / max(total, 1e-30), total / max(total + 1 - w, 1e-30)
        return (node, r) if node == 0 or torch.rand(()).item() < w else None

    node, residual = visit(0, 1.0)
    return node, int(torch.multinomial(residual, 1))


def clock(action: Callable[[], object], device: str) -> float:
    """Milliseconds of one call, the device synchronised at both ends."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    action()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


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
        action()
    return graph.replay


def contestants(tree: hsd.DraftTree, logits: torch.Tensor, args) -> dict[str, Callable[[], object]]:
    """Name -> what is timed."""
    probs = logits.softmax(-1)
    generator = torch.Generator(args.device).manual_seed(0)
    actions: dict[str, Callable[[], object]] = {"softmax": lambda: logits.softmax(-1)}
    for name in ("hsd", "token", "greedy"):
        actions[f"verify {name}"] = lambda name=name: hsd.verify(tree, probs, name, generator, check=False)
        if args.graph:
            actions[f"graph {name}"] = captured(lambda name=name: hsd.decide(tree, probs, name))
    if tree.support is None:
        actions["tensor loop"] = lambda: tensor_loop(tree, probs)
    if args.scalar:
        plain, rng = scalar.from_draft(tree, probs), random.Random(0)
        actions["scalar loop"] = lambda: scalar.sample("hsd", plain, rng)
    return actions


def measure(actions: dict[str, Callable[[], object]], args) -> dict[str, list[float]]:
    """Alternating rounds; the scalar loop takes seconds and gets five."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for name, action in actions.items():
        if name != "scalar loop":
            action()
    for turn in range(args.repeats):
        for name, action in actions.items():
            if name != "scalar loop" or turn < 5:
                times[name].append(clock(action, args.device))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--draft-vocabulary", type=int, nargs="+", default=[128_256, 32_000])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--graph", action="store_true", help="also time hsd.decide from a CUDA graph")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--no-scalar", dest="scalar", action="store_false", help="leave the scalar loop out")
    parser.add_argument("--json", metavar="FILE", help="write medians and the machine to FILE")
    args = parser.parse_args()
    device_name = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or "CPU"
    rows = []
    for width in args.draft_vocabulary:
        tree, logits = hybrid_tree(args.vocabulary, width, args.device)
        times = measure(contestants(tree, logits, args), args)
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
    sampled = int((tree.proposal_rows >= 0).sum())
    print(
        f"60 nodes, {sampled} of them sampled, {args.vocabulary:,} tokens, float32; {device_name}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, n = {args.repeats}\n"
    )
    print("| q lives on | what | median ms | softmaxes | x verify hsd |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['draft_vocabulary']:,} | {row['what']} | {row['median_ms']:.2f} | "
            f"{row['softmaxes']:.2f} | {row['hsd_verifications']:.2f} |"
        )
    if args.json:
        with open(args.json, "w") as file:
            json.dump(
                {
                    "device": device_name,
                    "threads": torch.get_num_threads(),
                    "torch": torch.__version__,
                    "repeats": args.repeats,
                    "rows": rows,
                },
                file,
                indent=1,
            )


if __name__ == "__main__":
    main()
