"""E[accepted] of several heads of one target, on the same prompts with the same random numbers.

    python -m eagle.train.evaluation.compare TARGET HEAD... --data held_out.jsonl --temperatures 0 1

Per head and temperature: mean E[accepted] over decoding steps, exact for each drafted tree, and its standard error over
prompts. A prompt is the part of a conversation before its first answer.
"""

import statistics
import sys

import torch

from eagle import command
from eagle.chat_template import add_flag
from eagle.checkpoints.load import load_head
from eagle.train.config import TrainConfig
from eagle.train.data.conversations import load_examples
from eagle.train.evaluation.drafted_trees import TreeEvaluation
from eagle.train.setup import load_pretrained


def compare(args) -> list[dict]:
    """One row per head and temperature. Raises ValueError for a target, head or file that cannot be used."""
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    target, tokenizer = load_pretrained(args.target, dtype, args.device_map)
    examples = load_examples(
        tokenizer, args.data, target.config.max_position_embeddings - args.tokens, args.chat_template_kwargs
    )
    rows = []
    for path in args.heads:
        head = load_head(path, target.config, dtype=dtype)
        for temperature in args.temperatures:
            config = TrainConfig(
                eval_prompts=args.prompts,
                eval_tokens=args.tokens,
                eval_temperature=temperature,
                eval_tree=args.tree,
                eval_verifier=args.verifier,
                eval_nodes=args.nodes,
                eval_depth=args.depth,
                seed=args.seed,
            )
            answers = TreeEvaluation(target, head, examples, config).answers(head)
            means = [statistics.fmean(values) for values in answers if values]
            rows.append(
                {
                    "head": path,
                    "temperature": temperature,
                    "prompts": len(means),
                    "expected_accepted": statistics.fmean(value for values in answers for value in values),
                    "error": statistics.stdev(means) / len(means) ** 0.5 if len(means) > 1 else float("nan"),
                }
            )
    return rows


def main(argv: list[str] | None = None) -> int:
    """Compare as `argv` says and return the exit status."""
    parser = command.parser("eagle.train.evaluation.compare", __doc__)
    parser.add_argument("target")
    parser.add_argument("heads", nargs="+", metavar="HEAD")
    parser.add_argument("--data", nargs="+", required=True, help="JSONL files that were not trained on")
    parser.add_argument("--temperatures", nargs="+", type=command.TEMPERATURE, default=[0.0, 1.0])
    parser.add_argument("--prompts", type=command.COUNT, default=40)
    parser.add_argument("--tokens", type=command.COUNT, default=64, help="per answer")
    parser.add_argument("--tree", default="hybrid", help="at temperature 0 hybrid trees are top-k trees")
    parser.add_argument("--verifier", default="hsd")
    parser.add_argument("--nodes", type=command.NODES, default=60)
    parser.add_argument("--depth", type=command.COUNT, default=7)
    parser.add_argument("--device-map")
    add_flag(parser)
    parser.add_argument("--seed", type=command.SEED, default=0)
    return command.start(parser, print_table, argv)


def print_table(args) -> None:
    """Print the rows of `compare` as Markdown."""
    rows = []
    for row in compare(args):
        value = f"{row['expected_accepted']:.3f} +- {row['error']:.3f}"
        rows.append([row["head"], f"{row['temperature']:g}", str(row["prompts"]), value])
    print(command.markdown_table(["head", "temperature", "prompts", "E[accepted]"], rows))


if __name__ == "__main__":
    sys.exit(main())
