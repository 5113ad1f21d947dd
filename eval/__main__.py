"""Answer a benchmark's questions and measure how.

One method, one answer file; the same command continues where it stopped, even after kill -9:

    python -m eval --bench gsm8k --base-model-path checkpoints/demo/target --ea-model-path checkpoints/demo/eagle3 \\
        --tree hybrid --verifier hsd --temperature 1 --num-questions 40 --seed 0 --answer-file results/hybrid.jsonl

Several methods, alternating question by question, with a report at the end:

    python -m eval --bench mt_bench --base-model-path BASE --ea-model-path HEAD --temperature 1 \\
        --methods plain topk+token topk+hsd hybrid+token hybrid+hsd --output results/mt_bench

Over several processes or GPUs (one shard file per rank, joined by the report):

    accelerate launch --num_processes 2 -m eval ... --output results/run && python -m eval.reports results/run
    torchrun --nproc-per-node 2 -m eval ...                           the same on a machine without GPUs

Questions come from --question-file, from $HSD_DATA, or are downloaded and checked;
`python -m eval.questions.downloads` lists them.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from eagle.checkpoints.pairs import add_pair_argument, apply_pair
from eval import provenance
from eval.questions import benchmarks, prompts
from eval.runs import load_models as engines
from eval.runs import runner
from eval.runs.answers import AnswerFile, remove, shard_path
from eval.runs.methods import METHODS, Decoding, Method, from_flags, resolve
from eval.speed import budget

TREES = ("none", "topk", "chain", "multi", "hybrid")
VERIFIERS = ("token", "block", "hsd", "published")
AUTO = "auto"  # of --nodes


def add_questions(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("questions")
    group.add_argument("--bench", "--bench-name", choices=list(benchmarks.BENCHMARKS), required=True)
    group.add_argument(
        "--protocol",
        help="which of the benchmark's question sets: gsm8k has full (default), eagle80, "
        "paper263 (8-shot), sample (bundled); humaneval has full, eagle80",
    )
    group.add_argument("--question-file", metavar="F", help="JSON lines with `question` or `turns`, instead")
    group.add_argument("--num-questions", type=int, metavar="N", help="the first N questions (default: all)")


def add_models(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("models (a directory or a hub id)")
    add_pair_argument(group)
    group.add_argument("--base-model-path", "--target", metavar="P", help="the target, without --pair")
    group.add_argument("--ea-model-path", "--head", metavar="P", help="its EAGLE-3 head, which drafts")
    group.add_argument(
        "--draft-model-path",
        metavar="P",
        help="an ordinary draft model: drafts when there is no head; used by transformers-assisted",
    )
    group.add_argument(
        "--dtype",
        choices=list(engines.DTYPES),
        default=engines.default_dtype(),
        help="weights and arithmetic (default: %(default)s on this machine)",
    )


def add_methods(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("methods")
    group.add_argument("--tree", choices=TREES, help="how drafts are laid out (one method; default hybrid)")
    group.add_argument(
        "--verifier",
        choices=VERIFIERS,
        help="which drafts are kept (one method; default hsd); `published` is the released rule, not lossless",
    )
    group.add_argument("--methods", nargs="+", metavar="M", help="several methods: " + ", ".join(METHODS))
    group.add_argument(
        "--total-token",
        "--nodes",
        type=count_or_auto,
        dest="nodes",
        metavar="N",
        help="rows of the target's forward per step: drafted tokens and the root; `auto` measures "
        "which budget and depth are fastest here (python -m eval.speed.budget) and keeps "
        "the choice",
    )
    group.add_argument(
        "--depth", type=int, metavar="K", help="longest draft (EAGLE's own scripts count one less: their 7 is 8 here)"
    )
    group.add_argument(
        "--top-k",
        "--width",
        type=int,
        dest="width",
        metavar="K",
        help="width of the top-k tree, as in EAGLE's scripts (for sampling see --sampling-top-k)",
    )


def count_or_auto(text: str) -> int | str:
    return text if text == AUTO else int(text)


def add_decoding(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("decoding")
    group.add_argument("--temperature", type=float, default=1.0, metavar="T", help="default 1; 0 is greedy")
    group.add_argument("--top-p", type=float, default=1.0, metavar="P")
    group.add_argument("--sampling-top-k", type=int, default=0, metavar="K", help="0: all tokens")
    group.add_argument(
        "--max-new-tokens", "--max-new-token", type=int, metavar="N", help="per turn (default 512; 1024 for mt_bench)"
    )
    group.add_argument("--system-prompt", metavar="TEXT", help="put in front of every conversation (default: none)")
    group.add_argument("--seed", type=int, default=0)


def add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--answer-file", metavar="F", help="one method's answers, JSON lines in FastChat's schema")
    group.add_argument("--output", metavar="DIR", help="directory for --methods: one answer file each, and a report")
    group.add_argument("--fresh", action="store_true", help="forget earlier answers in these files, do not resume")
    group.add_argument("--quiet", action="store_true", help="no progress bar")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for add in (add_questions, add_models, add_methods, add_decoding, add_output):
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
    drafting = [method.name for method in methods if method.tree != "none"]
    if "transformers-assisted" in drafting and not options.draft_model_path:
        raise ValueError(
            "method 'transformers-assisted' needs an ordinary draft model with the target's vocabulary; "
            "pass --draft-model-path"
        )
    if drafting and not (options.ea_model_path or options.draft_model_path):
        raise ValueError(
            f"method {drafting[0]!r} drafts and no drafter was given; pass --ea-model-path or --draft-model-path"
        )


def check_numbers(options: argparse.Namespace) -> None:
    """ValueError for a number no run can have."""
    limits = {
        "temperature": (0, None),
        "top_p": (0, 1),
        "sampling_top_k": (0, None),
        "max_new_tokens": (1, None),
        "nodes": (2, None),
        "depth": (1, None),
        "width": (1, None),
        "seed": (0, None),
    }
    for name, (low, high) in limits.items():
        value = getattr(options, name)
        if value not in (None, AUTO) and not (low <= value and (high is None or value <= high)):
            bound = f"at least {low}" if high is None else f"between {low} and {high}"
            raise ValueError(f"--{name.replace('_', '-')} {value}: expected {bound}")


def settings(
    options: argparse.Namespace,
    questions: benchmarks.QuestionSet,
    method: Method,
    decoding: Decoding,
    template: str,
    device: str,
) -> dict[str, Any]:
    """Everything that makes this method's answers what they are; a resumed run must agree on all of it."""
    return {
        "method": method.name,
        "tree": method.tree,
        "verifier": method.verifier,
        "lossy": method.lossy,
        "bench": questions.bench,
        "protocol": questions.protocol,
        "questions": questions.source,
        "questions_sha256": questions.sha256,
        "num_questions": len(questions.questions),
        "base_model_path": options.base_model_path,
        "ea_model_path": options.ea_model_path,
        "draft_model_path": options.draft_model_path,
        "dtype": options.dtype,
        "device": device,
        "template": template,
        "system_prompt": options.system_prompt,
        "seed": options.seed,
        **decoding._asdict(),
    }


def open_jobs(
    chosen: list[tuple[Method, Path]], rank: int, world: int, fresh: bool, describe: Any, origin: dict[str, Any]
) -> list[runner.Job]:
    jobs = []
    for method, path in chosen:
        place = shard_path(path, rank, world)
        if fresh:
            remove(place)
        jobs.append(runner.Job(method, AnswerFile(place, describe(method), origin)))
    return jobs


def ranks() -> tuple[int, int]:
    """This process's rank and the number of processes, as `accelerate launch` and torchrun export them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def device_name(device: Any) -> str:
    import torch

    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else str(device)


def automatic_budget(options: argparse.Namespace, task: runner.Task, world: int) -> tuple[int, int]:
    """(nodes, depth) of `--nodes auto`, kept beside the answers. ValueError where several processes would differ."""
    place = Path(options.output, "budget.json") if options.output else Path(f"{options.answer_file}.budget.json")
    if options.fresh:
        place.unlink(missing_ok=True)
    if world > 1 and not place.is_file():
        raise ValueError(
            "--nodes auto: every process would measure its own budget; run python -m eval.speed.budget "
            "first and pass its --nodes and --depth"
        )
    return budget.kept_or_measured(place, task)


def evaluate(options: argparse.Namespace, load: Any) -> list[Path]:
    """Check everything that can be checked, load the models, answer the questions. Returns the answer files."""
    check_numbers(options)
    apply_pair(options)
    chosen = chosen_methods(options)
    check_drafter(options, [method for method, _ in chosen])
    questions = benchmarks.load(options.bench, options.protocol, options.question_file, options.num_questions)
    rank, world = ranks()
    engine = load(
        options.base_model_path,
        options.ea_model_path,
        options.dtype,
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        draft_model_path=options.draft_model_path,
    )
    style = prompts.prompt_format(engine.tokenizer, options.base_model_path)
    limit = options.max_new_tokens or benchmarks.benchmark(options.bench).max_new_tokens
    decoding = Decoding(
        options.temperature, options.top_p, options.sampling_top_k, limit, options.nodes, options.depth, options.width
    )
    task = runner.Task(engine, style, decoding.with_defaults(), options.seed, options.system_prompt)
    if options.nodes == AUTO:
        nodes, depth = automatic_budget(options, task, world)
        task = task._replace(decoding=decoding._replace(nodes=nodes, depth=depth))

    def describe(method: Method) -> dict[str, Any]:
        return settings(options, questions, method, task.decoding, style.name, device_name(engine.device))

    jobs = open_jobs(chosen, rank, world, options.fresh, describe, provenance.provenance())
    try:
        return runner.run(task, jobs, questions.questions, rank, world, options.quiet)
    finally:
        for job in jobs:
            job.answers.close()


def main(argv: list[str] | None = None, load: Any = engines.load) -> int:
    options = build_parser().parse_args(argv)
    try:
        paths = evaluate(options, load)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not options.methods:
        print(f"answers: {paths[0]}   (table: python -m eval.reports {paths[0]})")
    elif ranks()[1] > 1:
        print(f"this shard is done; when all are: python -m eval.reports {options.output}")
    else:
        from eval.reports import report

        report.write([str(path) for path in paths], Path(options.output))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
