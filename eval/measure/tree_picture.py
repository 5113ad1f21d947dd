r"""Draw one step's draft tree as a picture: which tokens are top-k, which sampled, and where the accepted path ends.

    python -m eval.measure.tree_picture --base-model-path checkpoints/demo/target \
        --ea-model-path checkpoints/demo/eagle3 --nodes 20 --output tree.png

Read the picture from left to right. A square is a top-k token, a circle a sampled one; beside a top-k token stands p,
beside a sampled one p / d, the target probability over the probability it was drawn with; w is its weight before it is
verified. The fill is the probability that the accepted path ends there (written below it), and the thick line is the
path that one verification accepted, with its bonus token in green. `--skip` answers that many steps first.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import torch

import hsd
from eagle import command
from eagle.api.eagle_model import EagleModel
from eagle.autotune.probe import ScoredTree, StateProbe, TreeLimits
from eagle.autotune.prompts import encode
from eagle.engine.distributions import SamplingParams
from eagle.files import check_writable, write_file
from eagle.trees import TREES, TreeSettings
from eval.run.load_models import add_model_flags, load_from_flags
from eval.run.methods import verifiers_of


class Node(NamedTuple):
    """What the picture says about one node.

    target      p of its token at the parent; 1 for the root
    proposal    d of a sampled token, 1 for a top-k one
    weight      w on arrival; None where the verifier is not HSD
    stop        probability that the accepted path ends here
    """

    parent: int
    depth: int
    text: str
    sampled: bool
    target: float
    proposal: float
    weight: float | None
    stop: float
    accepted: bool


class Picture(NamedTuple):
    """A tree's nodes in index order, the bonus token's text, and a title."""

    nodes: list[Node]
    bonus: str
    title: str


def describe(drafted: ScoredTree, verifier: str, generator: torch.Generator, tokenizer, title: str = "") -> Picture:
    """The step's tree with its stopping law, and one verification of it."""
    tree, law = drafted.tree, drafted.stopping_law(verifier)
    verdict = hsd.verify(tree, drafted.target_probs, verifier, generator)
    path = set(verdict.path.tolist())
    weights = node_weights(tree, drafted.target_probs) if verifier == "hsd" else None
    nodes = []
    for index, (parent, row) in enumerate(zip(tree.parents.tolist(), tree.proposal_rows.tolist())):
        token = int(tree.tokens[index])
        nodes.append(
            Node(
                parent,
                int(drafted.batch.depths[0, index]),
                _shown(tokenizer, token),
                row >= 0,
                1.0 if parent < 0 else drafted.target_probs[parent, token].item(),
                _proposal(tree, index, drafted.target_probs[0])[token].item() if row >= 0 else 1.0,
                None if weights is None else weights[index],
                law.stop[index].item(),
                index in path,
            )
        )
    accepted = law.expected_accepted.item()
    return Picture(nodes, _shown(tokenizer, int(verdict.token)), f"{title}\nE[accepted] {accepted:.2f}".strip())


def node_weights(tree: hsd.DraftTree, target_probs: torch.Tensor) -> list[float]:
    """Weight w of every node on arrival, by the recursion of hsd/verifiers/hierarchical.py written out node by node."""
    weights = [1.0] * len(tree)
    for node in range(len(tree)):
        weight, residual = weights[node], target_probs[node].double()
        for child in (tree.parents == node).nonzero()[:, 0].tolist():
            d = _proposal(tree, child, residual)
            token = int(tree.tokens[child])
            weights[child] = min(1.0, weight * residual[token].item() / max(d[token].item(), 1e-30))
            excess = (weight * residual - d).clamp(min=0)
            mass = excess.sum().item()
            residual = excess / max(mass, 1e-30)
            weight = mass / max(mass + 1 - weight, 1e-30)
    return weights


def _proposal(tree: hsd.DraftTree, child: int, like: torch.Tensor) -> torch.Tensor:
    """Proposal d of a child on the target's vocabulary: a point mass where it is a top-k token."""
    d, row = torch.zeros_like(like), int(tree.proposal_rows[child])
    if row < 0:
        d[int(tree.tokens[child])] = 1.0
        return d
    assert tree.proposals is not None
    if tree.support is None:
        d += tree.proposals[row]
    else:
        d[tree.support] = tree.proposals[row].to(d.dtype)
    return d


def _shown(tokenizer, token: int) -> str:
    """The token's text on one line; its id without a tokenizer."""
    return str(token) if tokenizer is None else repr(tokenizer.decode([token]))[1:-1].strip(" ") or "␣"


def place(nodes: list[Node]) -> list[float]:
    """Height of every node: leaves one below another, a parent in the middle of its children."""
    children: list[list[int]] = [[] for _ in nodes]
    for index, node in enumerate(nodes[1:], 1):
        children[node.parent].append(index)
    height, next_leaf, stack = [0.0] * len(nodes), 0, [(0, False)]
    while stack:
        index, done = stack.pop()
        if not children[index]:
            height[index], next_leaf = float(next_leaf), next_leaf + 1
        elif done:
            height[index] = (height[children[index][0]] + height[children[index][-1]]) / 2
        else:
            stack += [(index, True), *((child, False) for child in reversed(children[index]))]
    return height


def render(picture: Picture, path: str | Path) -> None:
    """Write the picture (PNG, SVG or PDF by its ending). Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    nodes, height = picture.nodes, place(picture.nodes)
    deepest, tallest = max(node.depth for node in nodes), max(height) + 1
    figure, axes = pyplot.subplots(figsize=(2.3 * (deepest + 1.6), 0.62 * tallest + 1.6), layout="constrained")
    shade = pyplot.get_cmap("Oranges")
    most = max(node.stop for node in nodes)
    for index, node in enumerate(nodes[1:], 1):
        ends = [nodes[node.parent].depth, node.depth], [height[node.parent], height[index]]
        axes.plot(
            *ends, color="#1a7a3c" if node.accepted else "#9aa0a8", linewidth=3.5 if node.accepted else 1, zorder=1
        )
    for index, node in enumerate(nodes):
        axes.scatter(
            node.depth,
            height[index],
            s=330,
            marker="o" if node.sampled else "s",
            zorder=2,
            color=shade(0.75 * node.stop / most),
            edgecolors="#1a7a3c" if node.accepted else "#444444",
            linewidths=2.2 if node.accepted else 0.8,
        )
        _label(axes, node, height[index])
    last = max((index for index, node in enumerate(nodes) if node.accepted), key=lambda index: nodes[index].depth)
    axes.annotate(
        f"+ {picture.bonus}",
        (nodes[last].depth, height[last]),
        (34, -11),
        textcoords="offset points",
        color="#1a7a3c",
        weight="bold",
        va="top",
        parse_math=False,
    )
    _legend(figure, pyplot)
    axes.set_title(picture.title, fontsize=10, loc="left", parse_math=False)
    axes.set_xlim(-0.35, deepest + 0.9)
    axes.set_ylim(tallest - 0.4, -0.8)
    axes.set_xticks(range(deepest + 1))
    axes.set_xlabel("draft tokens after the root")
    axes.set_yticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)
    ending = Path(path).suffix.removeprefix(".") or "png"
    write_file(path, lambda temporary: figure.savefig(temporary, dpi=120, format=ending))
    pyplot.close(figure)


def _label(axes, node: Node, height: float) -> None:
    beside = (
        ""
        if node.parent < 0
        else (
            f"p {node.target:.2g}"
            + (f" / d {node.proposal:.2g}" if node.sampled else "")
            + (f"  w {node.weight:.2f}" if node.weight is not None else "")
        )
    )
    where = {"textcoords": "offset points", "parse_math": False}
    axes.annotate(node.text, (node.depth, height), (12, 3), fontsize=9, weight="bold", **where)
    axes.annotate(beside, (node.depth, height), (12, -8), fontsize=6.5, color="#444444", **where)
    axes.annotate(f"{node.stop:.2f}", (node.depth, height), (0, -2.5), fontsize=6, ha="center", **where)


def _legend(figure, pyplot) -> None:
    shape = {"color": "white", "markeredgecolor": "#444444", "linestyle": "", "markersize": 9}
    marks = [
        pyplot.Line2D([], [], marker="s", label="top-k token", **shape),
        pyplot.Line2D([], [], marker="o", label="sampled token", **shape),
        pyplot.Line2D([], [], color="#1a7a3c", linewidth=3.5, label="accepted path, + bonus token"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=3, frameon=False, fontsize=8)


def check_ending(path: str) -> None:
    """ValueError where matplotlib writes no pictures of this kind."""
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if (Path(path).suffix.removeprefix(".") or "png") not in known:
        raise ValueError(f"--output {path}: expected an ending among {', '.join(sorted(known))}")


def draft_step(
    model: EagleModel,
    prompt: list[int],
    sampling: SamplingParams,
    tree: str,
    settings: TreeSettings,
    verifier: str,
    skip: int,
    generator: torch.Generator,
) -> ScoredTree:
    """The tree of step `skip` of an answer. Raises ValueError where the answer ends earlier."""
    probe = StateProbe(model, sampling, TreeLimits.of([(tree, settings)]))
    follow = lambda probe: (probe.draft(tree, settings), verifier)
    for index in probe.states(prompt, model.context_length, generator, follow):
        if index == skip:
            return probe.draft(tree, settings)
    raise ValueError(f"--skip {skip}: the answer ended before; use a smaller number or another --seed")


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = command.parser("eval.measure.tree_picture", __doc__)
    add = parser.add_argument
    add_model_flags(parser)
    add("--prompt", default="A baker fills 4 trays with 6 rolls each and sells 15 rolls. How many are left?")
    add("--tree", default="hybrid", choices=[name for name, builder in TREES.items() if builder])
    add("--verifier", default="hsd", choices=verifiers_of("chain"))
    add("--temperature", type=command.TEMPERATURE, default=1.0)
    add("--nodes", type=command.NODES, default=20)
    add("--depth", type=command.COUNT, default=5)
    add("--width", type=command.COUNT)
    add("--skip", type=command.INDEX, default=0, metavar="N", help="steps of the answer before the one in the picture")
    add("--seed", type=command.SEED, default=0)
    add("--output", default="tree.png", metavar="F")
    return parser


def run(options: argparse.Namespace) -> None:
    """Draft the step, verify it once, write the picture."""
    check_writable(Path(options.output))
    check_ending(options.output)
    model = load_from_flags(options)
    settings = TreeSettings(options.nodes, options.depth, options.width)
    verifier = "greedy" if options.temperature < 1e-5 else options.verifier
    generator = torch.Generator(model.device).manual_seed(options.seed)
    drafted = draft_step(
        model,
        encode(model.tokenizer, [[{"role": "user", "content": options.prompt}]])[0],
        SamplingParams(options.temperature),
        options.tree,
        settings,
        verifier,
        options.skip,
        generator,
    )
    title = f"{options.tree} tree, {verifier}, temperature {options.temperature:g}, {options.nodes} nodes"
    render(describe(drafted, verifier, generator, model.tokenizer, title), options.output)
    print(f"picture: {options.output}")


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command.start(build_parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
