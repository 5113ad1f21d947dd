"""Where the host's share of a decoding step goes: operators and CPU microseconds, per phase and per level of the draft.

    python -m eval.speed.operators                                      the demo pair, 9 nodes, temperature 1
    python -m eval.speed.operators --nodes 21 --depth 5 --temperature 0

`operators` counts what is dispatched, views included. `CPU us` is the processor time of this process on one thread,
which other work on the machine disturbs far less than wall time: the median and the minimum over `--steps` steps.

    read       the drafter reads what was committed last            grow n    its pass over the nodes of level n
    pick n     the builder fills level n                            tree      the levels are joined
"""

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from eagle import EagleModel
from eagle.engine.plan import Plan
from eagle.engine.sampling import SamplingParams, SamplingTransform
from eagle.engine.step import Decoder, read_back
from eagle.trees import TreeSettings, find_tree

NEW_TOKENS = 96  # generated behind the context before it starts over


class Marks:
    """Processor time of each part of one step; `mark` ends the part it names."""

    def __init__(self, now: Callable[[], float]):
        self.now, self.parts, self.last = now, Counter(), now()

    def mark(self, part: str) -> None:
        now = self.now()
        self.parts[part] += now - self.last
        self.last = self.now()


class MarkedDrafter:
    """A drafter that marks where its calls begin and end."""

    def __init__(self, drafter):
        self.drafter, self.marks, self.level = drafter, None, 0

    def __getattr__(self, name: str):
        return getattr(self.drafter, name)

    def read(self, *args):
        logits, self.level = self.drafter.read(*args), 0
        self._mark("read")
        return logits

    def grow(self, *args):
        self.level += 1
        self._mark(f"pick {self.level}")
        logits = self.drafter.grow(*args)
        self._mark(f"grow {self.level}")
        return logits

    def _mark(self, part: str) -> None:
        if self.marks is not None:
            self.marks.mark(part)


class Operators(TorchDispatchMode):
    """Counts dispatched operators."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


class Bench:
    """One variant, decoding behind a fixed random context."""

    def __init__(self, model: EagleModel, tree: str, args: argparse.Namespace):
        self.target = model.target
        self.drafter = MarkedDrafter(model.drafter) if find_tree(tree) else None
        law = SamplingTransform(SamplingParams(args.temperature))
        self.plan = Plan.resolve(tree, args.verifier, TreeSettings(args.nodes, args.depth), law)
        self.generator = torch.Generator(model.device).manual_seed(args.seed)
        self.decoder = Decoder(self.target, self.drafter, self.plan, self.generator)
        self.prompt = torch.randint(
            model.target.vocab_size, (args.context,), generator=torch.Generator().manual_seed(args.seed)
        ).tolist()
        self.start()

    def start(self) -> None:
        self.state = self.decoder.prefill([self.prompt], NEW_TOKENS)
        self.state.rows[0].new_tokens += self.state.step.root.tolist()

    def step(self, now: Callable[[], float]) -> Counter:
        """What each part of one step took by the clock `now`."""
        decoder = self.decoder
        if len(self.state.rows[0].new_tokens) > NEW_TOKENS - self.plan.depth - 2:
            self.start()
        marks = Marks(now)
        if self.drafter is not None:
            self.drafter.marks = marks
        drafted = decoder.draft(self.state, self.generator)
        marks.mark("tree")
        scores = decoder.score(drafted.tree)
        marks.mark("score")
        outcome = decoder.verify(self.state, drafted, scores, self.generator)
        marks.mark("verify")
        results = read_back(decoder.commit(self.state, scores, outcome), drafted.tree.tokens.shape[1])
        decoder.set_length_bounds(self.state, results)
        self.state.rows[0].new_tokens += results[0].tokens
        marks.mark("commit")
        return marks.parts

    @torch.inference_mode()
    def operators(self) -> Counter:
        with Operators() as counter:
            return self.step(lambda: counter.count)

    @torch.inference_mode()
    def seconds(self) -> Counter:
        return self.step(time.process_time)


def table(counts: Counter, times: list[Counter]) -> list[str]:
    lines = ["| part | operators | CPU us, median | minimum |", "|---|---|---|---|"]
    row = "| {} | {} | {:.0f} | {:.0f} |".format
    for part, count in counts.items():
        taken = [1e6 * one[part] for one in times]
        lines.append(row(part, count, statistics.median(taken), min(taken)))
    whole = [1e6 * sum(one.values()) for one in times]
    return [*lines, row("step", sum(counts.values()), statistics.median(whole), min(whole))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model-path", default="checkpoints/demo/target")
    parser.add_argument("--ea-model-path", default="checkpoints/demo/eagle3")
    parser.add_argument("--tree", help="default: hybrid, and topk at temperature 0")
    parser.add_argument("--verifier", default="hsd")
    parser.add_argument("--nodes", type=int, default=9)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = EagleModel.from_pretrained(args.base_model_path, args.ea_model_path, dtype=torch.float32)
    tree = args.tree or ("topk" if args.temperature == 0 else "hybrid")
    for name in ("none", tree):
        bench = Bench(model, name, args)
        counts = [bench.operators() for _ in range(2)][1]
        times = [bench.seconds() for _ in range(args.steps)]
        title = "plain decoding" if name == "none" else f"{name}, {args.nodes} nodes, depth {args.depth}"
        print(f"\n{title}, temperature {args.temperature:g}\n")
        print("\n".join(table(counts, times)))


if __name__ == "__main__":
    main()
