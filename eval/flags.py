"""The flags of `python -m eval`, and what can be said against them before anything is loaded."""

import argparse
from pathlib import Path

from eagle import chat_template, command
from eagle.autotune.candidates import AUTO, count_or_auto
from eagle.trees import TREES
from eval import protocols
from eval.questions import benchmarks
from eval.run import load_models
from eval.run.methods import METHODS, NEEDS_NO_DRAFTER, Method, from_flags, resolve, verifiers_of
from hsd import VERIFIERS


def add_questions(parser: argparse.ArgumentParser) -> None:
    """Flags that choose what is asked."""
    group = parser.add_argument_group("questions")
    group.add_argument("--bench", "--bench-name", choices=list(benchmarks.BENCHMARKS), required=True)
    group.add_argument(
        "--protocol",
        help="which of the benchmark's question sets: gsm8k has full (default), eagle80, "
        "paper263 (8-shot), shots4, shots12, shots24 (longer contexts), sample (bundled); humaneval has full, eagle80; "
        "or whose settings as well: eagle (EAGLE's llama3chat scripts: system prompt, temperature 0, 512 tokens), "
        "dspark (temperature 1, chains of 7, 2048 tokens)",
    )
    group.add_argument(
        "--question-file",
        metavar="F",
        help="JSON lines with `question`, `turns`, `prompt` or `problem`, instead (layouts: docs/reproduction.md)",
    )
    group.add_argument(
        "--run-code",
        action="store_true",
        help="humaneval: run what the model writes against the tests, in a process with limits (not a container), and "
        "report the share that passes",
    )
    group.add_argument("--num-questions", type=command.COUNT, metavar="N", help="the first N questions (default: all)")


def add_models(parser: argparse.ArgumentParser) -> None:
    """Flags that choose the pair."""
    load_models.add_model_flags(parser.add_argument_group("models"), auto=True)


def add_methods(parser: argparse.ArgumentParser) -> None:
    """Flags that choose what drafts and what verifies."""
    group = parser.add_argument_group("methods")
    group.add_argument("--tree", choices=[*TREES, AUTO], help="how drafts are laid out (one method; default hybrid)")
    group.add_argument(
        "--verifier",
        choices=verifiers_of("chain"),
        help="which drafts are kept (one method; default hsd); not lossless: "
        + ", ".join(name for name, verifier in VERIFIERS.items() if not verifier.lossless),
    )
    group.add_argument("--methods", nargs="+", metavar="M", help="several methods: " + ", ".join(METHODS))
    group.add_argument(
        "--total-token",
        "--nodes",
        type=count_or_auto,
        dest="nodes",
        metavar="N",
        help="draft-token budget: rows of the target's forward per step, draft tokens and the root; `auto`, as "
        "`--tree auto`: what is fastest here, depth included (python -m eval.measure.budget shows it)",
    )
    group.add_argument(
        "--depth",
        type=command.COUNT,
        metavar="K",
        help="longest draft (EAGLE's own scripts count one less: their 7 is 8 here, and 7 with --protocol eagle)",
    )
    group.add_argument(
        "--top-k",
        "--width",
        type=command.COUNT,
        dest="width",
        metavar="K",
        help="width of the top-k tree, as in EAGLE's scripts (for sampling see --sampling-top-k)",
    )


def add_decoding(parser: argparse.ArgumentParser) -> None:
    """Flags that choose how answers are sampled; what is not given is off, whatever a model's own file says."""
    group = parser.add_argument_group("decoding (defaults are neutral: a model's own files are not read)")
    add = group.add_argument
    add("--temperature", type=command.TEMPERATURE, metavar="T", help="default 1 (0 for --protocol eagle); 0 is greedy")
    add("--top-p", type=command.SHARE, default=1.0, metavar="P", help="default 1: all tokens")
    add("--sampling-top-k", type=command.INDEX, default=0, metavar="K", help="default 0: all tokens")
    add("--min-p", type=command.SHARE, default=0.0, metavar="P", help="default 0: all tokens")
    add("--repetition-penalty", type=command.POSITIVE, default=1.0, metavar="R", help="default 1: none")
    add(
        "--max-new-tokens",
        "--max-new-token",
        type=command.COUNT,
        metavar="N",
        help="per turn (default 512; 1024 for mt_bench, math500 and spec_bench)",
    )
    add(
        "--lookup-tokens",
        type=command.COUNT,
        default=10,
        metavar="N",
        help="longest draft of transformers-lookup (default 10)",
    )
    chat_template.add_flag(group)
    add("--system-prompt", metavar="TEXT", help="put in front of every conversation (default: none)")
    add("--seed", type=command.SEED, default=0)


def add_output(parser: argparse.ArgumentParser) -> None:
    """Flags that choose where answers go."""
    group = parser.add_argument_group("output")
    group.add_argument("--answer-file", metavar="F", help="one method's answers, JSON lines in FastChat's schema")
    group.add_argument("--output", metavar="DIR", help="directory for --methods: one answer file each, and a report")
    group.add_argument("--fresh", action="store_true", help="forget earlier answers in these files, do not resume")
    group.add_argument("--quiet", action="store_true", help="no progress bar")


def build_parser(description: str = "") -> argparse.ArgumentParser:
    """All flags of `python -m eval`."""
    parser = command.parser("eval", description)
    for add in (add_questions, add_models, add_methods, add_decoding, add_output, protocols.add_eagle_flags):
        add(parser)
    return parser


def chosen_methods(options: argparse.Namespace) -> list[tuple[Method, Path]]:
    """Each method and its answer file. Raises ValueError when the flags contradict each other."""
    one = options.tree is not None or options.verifier is not None or options.answer_file is not None
    if options.methods and one:
        raise ValueError("--methods runs several methods into --output; leave --tree, --verifier and --answer-file out")
    if options.methods:
        if not options.output:
            raise ValueError("--methods needs --output DIR, where one answer file per method goes")
        methods = [resolve(name) for name in dict.fromkeys(options.methods)]
        return [(method, Path(options.output) / f"{method.name}.jsonl") for method in methods]
    method = from_flags(options.tree or "hybrid", options.verifier or "hsd")
    if not options.answer_file and not options.output:
        raise ValueError("no place for the answers; pass --answer-file F (or --output DIR)")
    return [(method, Path(options.answer_file or Path(options.output) / f"{method.name}.jsonl"))]


def check_drafter(options: argparse.Namespace, methods: list[Method]) -> None:
    """ValueError when a method's drafter was not given."""
    drafting = [method.name for method in methods if method.name not in NEEDS_NO_DRAFTER]
    if "transformers-assisted" in drafting and not options.draft_model_path:
        raise ValueError(
            "method 'transformers-assisted' needs an ordinary draft model with the target's vocabulary; "
            "pass --draft-model-path"
        )
    if drafting and not (options.ea_model_path or options.draft_model_path):
        raise ValueError(
            f"method {drafting[0]!r} drafts and no drafter was given; pass --ea-model-path or --draft-model-path"
        )


def check_auto(options: argparse.Namespace) -> None:
    """ValueError for a depth that `--nodes auto` chooses."""
    if options.nodes == AUTO and options.depth is not None:
        raise ValueError(f"--depth {options.depth}: --nodes auto chooses the depth; leave it out, or name --nodes")
