"""Held-out sum of min(p, q) by draft step, for a head on lists of conversations that it was not trained on.

    python -m eagle.train.evaluation.held_out TARGET HEAD --data F... [--json OUT.json]

p and q are compared at temperature 1 at every position of the answers; where these are the target's own samples
(`eagle.train.regenerate`), step 1 is the probability that a token sampled from q is accepted. Every list is named with
its SHA-256, so that two numbers can be seen to come from the same text.
"""

import argparse
import sys
from typing import NamedTuple

import torch

from eagle import command
from eagle.chat_template import add_flag
from eagle.checkpoints.load import load_head
from eagle.digests import sha256_of_file
from eagle.files import check_writable, write_json
from eagle.nn.precision import DTYPES
from eagle.train.data.conversations import collate, load_examples
from eagle.train.data.feature_cache import batches_of
from eagle.train.data.features import OnlineFeatures
from eagle.train.evaluation.agreement import acceptance_sums, report_of, standard_errors
from eagle.train.setup import load_pretrained


class HeldOut(NamedTuple):
    """The numbers of one list. Lists have one entry per draft step."""

    data: str
    sha256: str
    conversations: int
    positions: int
    min_p_q: list[float]
    standard_error: list[float]  # over conversations; NaN for a single one
    top1_agreement: list[float]
    chain: float  # E[accepted] of a sampled chain as deep as `steps`


def held_out(args: argparse.Namespace) -> list[HeldOut]:
    """One result per file of `args.data`. Raises ValueError for a target, head or file that cannot be used."""
    digests = [sha256_of_file(path) for path in args.data]
    dtype = DTYPES[args.dtype]
    target, tokenizer = load_pretrained(args.target, dtype)
    target = target.to("cuda" if torch.cuda.is_available() else "cpu")
    head = load_head(args.head, target.config, dtype=dtype)
    head.bind(target)
    head = head.to(target.device).eval()
    source, longest = (
        OnlineFeatures(target, head.config.taps),
        min(args.max_length, target.config.max_position_embeddings),
    )
    found = []
    for path, digest in zip(args.data, digests, strict=True):
        examples = load_examples(tokenizer, [path], longest, args.chat_template_kwargs)
        plan = batches_of(examples, list(range(len(examples))), args.batch_tokens)
        batches = (collate([examples[i] for i in rows]).to(target.device) for rows in plan)
        sums = acceptance_sums(head, source, batches, args.steps)
        report, errors = report_of(sums), [round(error, 4) for error in standard_errors(sums)]
        numbers = (len(examples), report.positions, report.accepted, errors, report.agree, report.chain)
        found.append(HeldOut(path, digest, *numbers))
    return found


def table(results: list[HeldOut]) -> str:
    """A Markdown table, and the digests below it."""
    steps = len(results[0].min_p_q)
    names = ["data", "conversations", "positions", *(f"step {step}" for step in range(1, steps + 1)), "chain"]
    rows = []
    for r in results:
        means = [f"{mean:.3f} +- {error:.3f}" for mean, error in zip(r.min_p_q, r.standard_error, strict=True)]
        rows.append([r.data, str(r.conversations), str(r.positions), *means, f"{r.chain:.3f}"])
    digests = [f"sha256 {r.sha256}  {r.data}" for r in results]
    return "\n".join([command.markdown_table(names, rows), "", *digests])


def report(args: argparse.Namespace) -> None:
    """Print the table and write the JSON file, if one is named."""
    if args.json:
        check_writable(args.json)
    results = held_out(args)
    print(table(results))
    if args.json:
        rows = [row._asdict() for row in results]
        for row in rows:  # JSON has no NaN
            row["standard_error"] = [None if error != error else error for error in row["standard_error"]]
        settings = {"target": args.target, "head": args.head, "dtype": args.dtype, "max_length": args.max_length}
        write_json(args.json, {**settings, "results": rows})


def main(argv: list[str] | None = None) -> int:
    """Evaluate as `argv` says and return the exit status."""
    parser = command.parser("eagle.train.evaluation.held_out", __doc__)
    add = parser.add_argument
    add("target", metavar="TARGET", help="directory or hub id of the target model")
    add("head", metavar="HEAD", help="directory or hub id of the head")
    add("--data", nargs="+", required=True, metavar="F", help="JSONL lists that were not trained on")
    add("--steps", type=command.COUNT, default=7, help="draft steps")
    add("--max-length", type=command.COUNT, default=2048, help="longer conversations are cut")
    add("--batch-tokens", type=command.COUNT, default=2048, help="padded tokens of one forward")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of target and head")
    add_flag(parser)
    add("--json", metavar="OUT", help="write the numbers there as well")
    return command.start(parser, report, argv)


if __name__ == "__main__":
    sys.exit(main())
