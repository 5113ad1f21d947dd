"""Operators and processor time of one decoding step, per phase and per level of the draft.

    python -m eval.measure.operators                                      the demo pair, 9 nodes, temperature 1
    python -m eval.measure.operators --nodes 21 --depth 5 --temperature 0

`operators` counts what is dispatched, views included. `CPU us` is the processor time of this process on one thread,
which other work on the machine disturbs far less than wall time: the median and the minimum over `--steps` steps.

    read       the drafter reads what was committed last            grow n    its pass over the nodes of level n
    pick n     the builder fills level n                            tree      the levels are joined
    score      the target's forward over the tree                   verify    path and bonus token
    commit     the target's cache keeps the path, results come back to the host
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from eagle import EagleModel, command
from eagle.checkpoints.pairs import DEMO
from eagle.engine.distributions import SamplingParams
from eagle.engine.plan import Plan
from eagle.engine.session import Session
from eagle.trees import TreeSettings
from eval.report.markdown import markdown_table
from eval.run.load_models import add_model_flags, load_from_flags

NEW_TOKENS = 96  # generated behind the context before it starts over


class PhaseMarks:
    """A clock's reading split over the parts of one step; `mark` ends the part it names."""

    def __init__(self, now: Callable[[], float]):
        """Start at the clock's reading `now()`."""
        self.now = now
        self.parts: dict[str, float] = defaultdict(float)
        self.last = now()
        self.level = 0

    def mark(self, part: str) -> None:
        """What passed since the last mark belongs to `part`."""
        self.parts[part] += self.now() - self.last
        self.last = self.now()


class OperatorCounter(TorchDispatchMode):
    """Counts dispatched operators."""

    def __init__(self) -> None:
        """Start at 0."""
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, then run the operator."""
        del types  # part of the protocol, not needed to count
        self.count += 1
        return func(*args, **(kwargs or {}))


# What ends where a call begins, and what ends where it returns; {} is the level of the draft.
CALLS = {"read": (None, "read"), "grow": ("pick {}", "grow {}"), "score": ("tree", "score"), "commit": ("verify", None)}


def with_marks(call: Callable, marks: PhaseMarks, name: str) -> Callable:
    """`call`, with marks at its beginning and its end."""
    before, after = CALLS[name]

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        marks.level += name == "grow"
        if before:
            marks.mark(before.format(marks.level))
        result = call(*args, **kwargs)
        if after:
            marks.mark(after.format(marks.level))
        return result

    return wrapper


@contextmanager
def marked(session: Session, marks: PhaseMarks) -> Iterator[None]:
    """Mark the calls that one step makes to the target and, where it drafts, to the drafter."""
    places: list[tuple[Any, str]] = [(session.target, "score"), (session.target, "commit")]
    places += [(session.drafter, "read"), (session.drafter, "grow")] if session.drafter is not None else []
    for owner, name in places:
        setattr(owner, name, with_marks(getattr(owner, name), marks, name))
    try:
        yield
    finally:
        for owner, name in places:
            delattr(owner, name)  # the class's own method is visible again
    marks.mark("commit")


class RepeatedSteps:
    """Steps of one tree behind a fixed random context, as many as are asked for."""

    def __init__(self, model: EagleModel, tree: str, options: argparse.Namespace):
        """The context is drawn from `--seed`; nothing is decoded yet."""
        random = torch.Generator().manual_seed(options.seed)
        self.prompt = torch.randint(model.target.vocab_size, (options.context,), generator=random).tolist()
        settings = TreeSettings(options.nodes, options.depth)
        plan = Plan.resolve(tree, options.verifier, settings, options.temperature)
        self.session = Session(model.target, model.drafter, plan)
        self.params, self.random = SamplingParams(options.temperature), random

    def step(self, now: Callable[[], float]) -> dict[str, float]:
        """What each part of one step took by the clock `now`."""
        if not self.session.rows:
            self.session.add(self.prompt, self.params, self.random, max_new_tokens=NEW_TOKENS)
        marks = PhaseMarks(now)
        with marked(self.session, marks):
            self.session.step()
        return marks.parts

    def operators(self) -> dict[str, float]:
        """Dispatched operators per part of one step."""
        with OperatorCounter() as counter:
            return self.step(lambda: counter.count)

    def seconds(self) -> dict[str, float]:
        """Processor seconds per part of one step."""
        return self.step(time.process_time)


def table(counts: dict[str, float], times: list[dict[str, float]]) -> str:
    """Markdown: a row per part, and the whole step."""

    def row(part: str, count: float, seconds: list[float]) -> list[str]:
        micros = [1e6 * value for value in seconds]
        return [part, f"{count:.0f}", f"{statistics.median(micros):.0f}", f"{min(micros):.0f}"]

    rows = [row(part, count, [one[part] for one in times]) for part, count in counts.items()]
    whole = row("step", sum(counts.values()), [sum(one.values()) for one in times])
    return markdown_table(["part", "operators", "CPU us, median", "minimum"], [*rows, whole])


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = command.parser("eval.measure.operators", __doc__)
    add_model_flags(parser, default_pair=DEMO)
    parser.add_argument("--tree", help="default: hybrid, and topk at temperature 0")
    parser.add_argument("--verifier", default="hsd")
    parser.add_argument("--nodes", type=command.NODES, default=9)
    parser.add_argument("--depth", type=command.COUNT, default=4)
    parser.add_argument("--context", type=command.COUNT, default=256, help="tokens before the first step")
    parser.add_argument("--temperature", type=command.TEMPERATURE, default=1.0)
    parser.add_argument("--steps", type=command.COUNT, default=200)
    parser.add_argument("--seed", type=command.SEED, default=0)
    return parser


def measure(options: argparse.Namespace) -> None:
    """Print one table for plain decoding and one for the tree."""
    torch.set_num_threads(1)
    model = load_from_flags(options)
    tree = options.tree or ("topk" if options.temperature == 0 else "hybrid")
    for name in ("none", tree):
        steps = RepeatedSteps(model, name, options)
        steps.operators()  # the first step after a prompt has other shapes
        counts = steps.operators()
        times = [steps.seconds() for _ in range(options.steps)]
        title = "plain decoding" if name == "none" else f"{name}, {options.nodes} nodes, depth {options.depth}"
        print(f"\n{title}, temperature {options.temperature:g}\n\n{table(counts, times)}")


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command.start(build_parser(), measure, argv)


if __name__ == "__main__":
    raise SystemExit(main())
