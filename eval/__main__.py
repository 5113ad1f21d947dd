r"""Answer a benchmark's questions and measure how.

One method, one answer file; the same command continues where it stopped, even after kill -9:

    python -m eval --bench gsm8k --base-model-path checkpoints/demo/target --ea-model-path checkpoints/demo/eagle3 \
        --tree hybrid --verifier hsd --temperature 1 --num-questions 40 --seed 0 --answer-file results/hybrid.jsonl

Several methods, alternating question by question, with a report at the end:

    python -m eval --bench mt_bench --base-model-path BASE --ea-model-path HEAD --temperature 1 \
        --methods plain topk+token topk+hsd hybrid+token hybrid+hsd --output results/mt_bench

As EAGLE's scripts do, with their flags (`--protocol dspark`: the protocol of 2026's papers at temperature 1):

    python -m eval --protocol eagle --bench-name mt_bench --base-model-path BASE --ea-model-path HEAD --model-id NAME

Over several processes or GPUs (one shard file per rank, joined by the report):

    accelerate launch --num_processes 2 -m eval ... --output results/run && python -m eval.report results/run
    torchrun --nproc-per-node 2 -m eval ...                           the same on a machine without GPUs

Questions come from --question-file, from $HSD_DATA, or are downloaded and checked;
`python -m eval.questions.downloads` lists them.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from eagle import chat_template, command
from eagle.autotune.candidates import AUTO
from eagle.checkpoints.fingerprint import weights_fingerprint
from eval import flags, protocols, provenance
from eval.questions import benchmarks, execution, prompts
from eval.run import load_models, runner
from eval.run.answers import WEIGHTS, AnswerFile, shard_path
from eval.run.methods import NEEDS_NO_DRAFTER, Decoding, Method, Models


def settings(
    options: argparse.Namespace,
    questions: benchmarks.QuestionSet,
    method: Method,
    task: runner.Task,
) -> dict[str, Any]:
    """Everything that makes this method's answers what they are; a resumed run must agree on all of it."""
    paths = {name: getattr(options, name) for name in WEIGHTS}
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
        **{name: path and provenance.portable(path) for name, path in paths.items()},
        **{WEIGHTS[name]: weights_fingerprint(path) for name, path in paths.items()},
        "dtype": str(task.models.engine.dtype).removeprefix("torch."),
        "device": device_name(task.models.engine.device),
        "template": task.style.name,
        "system_prompt": options.system_prompt,
        "seed": options.seed,
        **({"run_code": True} if task.passes else {}),
        **task.decoding._asdict(),
    }


class Ranks(NamedTuple):
    """This process among those of the run, as `accelerate launch` and torchrun export it."""

    rank: int
    local: int
    world: int

    @staticmethod
    def of_environment() -> "Ranks":
        """Raises ValueError for what is not a number."""
        values = [
            os.environ.get(name, default) for name, default in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"))
        ]
        try:
            found = Ranks(*map(int, values))
        except ValueError as error:
            raise ValueError(f"RANK, LOCAL_RANK, WORLD_SIZE are {values}: expected numbers") from error
        if not 0 <= found.rank < found.world or found.local < 0:
            raise ValueError(f"RANK, LOCAL_RANK, WORLD_SIZE are {values}: expected ranks from 0 up, below WORLD_SIZE")
        return found


def device_name(device: Any) -> str:
    """The GPU's name, or `cpu`."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else str(device)


def check_choices(options: argparse.Namespace, methods: list[Method], ranks: Ranks) -> None:
    """ValueError where several processes would choose differently."""
    if ranks.world > 1 and AUTO in (options.nodes, *(method.tree for method in methods)):
        raise ValueError(
            "auto: every process would choose its own tree; run python -m eval.measure.budget first and pass what it "
            "chooses"
        )


Load = Callable[..., Any]


def load_task(options: argparse.Namespace, methods: list[Method], ranks: Ranks, load: Load) -> runner.Task:
    """Load the models."""
    engine = load(
        options.base_model_path,
        options.ea_model_path,
        options.dtype,
        local_rank=ranks.local,
        draft_model_path=options.draft_model_path,
    )
    assisted = any(method.name == "transformers-assisted" for method in methods)
    assistant = load_models.load_assistant(options.draft_model_path, engine.dtype, ranks.local) if assisted else None
    style = prompts.prompt_format(engine.tokenizer, options.base_model_path, options.chat_template_kwargs)
    chat_template.warn_of_others(options.ea_model_path, options.chat_template_kwargs)
    decoding = Decoding(
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.sampling_top_k,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        max_new_tokens=options.max_new_tokens or benchmarks.benchmark(options.bench).max_new_tokens,
        nodes=options.nodes,
        depth=options.depth,
        width=options.width,
        lookup_tokens=options.lookup_tokens,
    )
    return runner.Task(
        Models(engine, assistant),
        style,
        decoding.with_defaults(torch.device(engine.device).type),
        options.seed,
        options.system_prompt,
        options.model_id,
        execution.passes if options.run_code else None,
    )


def evaluate(options: argparse.Namespace, load: Load, runs: list[runner.MethodRun]) -> runner.Finished:
    """Check everything that can be checked, claim the answer files, load the models, answer the questions.

    runs    filled with the methods and their open answer files; closed when this returns or raises
    """
    protocols.apply(options)
    flags.check_auto(options)
    chosen = flags.chosen_methods(options)
    methods = [method for method, _ in chosen]
    load_models.resolve_flags(options, head=any(method.name not in NEEDS_NO_DRAFTER for method in methods))
    flags.check_drafter(options, methods)
    questions = benchmarks.load(
        options.bench,
        options.protocol,
        options.question_file,
        options.num_questions,
        (options.question_begin, options.question_end),
    )
    if options.run_code:
        execution.check(questions.questions)
    ranks = Ranks.of_environment()
    try:
        for method, path in chosen:
            runs.append(runner.MethodRun(method, AnswerFile(shard_path(path, ranks.rank, ranks.world))))
        check_choices(options, methods, ranks)
        task = load_task(options, methods, ranks, load)
        origin = provenance.provenance()
        for run in runs:
            run.answers.begin(settings(options, questions, run.method, task), origin, options.fresh)
        return runner.run(task, runs, questions.questions, ranks.rank, ranks.world, options.quiet)
    finally:
        for run in runs:
            run.answers.close()


def kept(runs: list[runner.MethodRun]) -> str:
    """What an interrupted run leaves, and how to continue."""
    count = sum(len(run.answers.done) for run in runs)
    if not count:
        return "Nothing was answered, earlier answers are untouched; run the command again."
    files = ", ".join(str(run.answers.path) for run in runs if run.answers.done)
    return f"{count} answers are kept in {files}; the same command (without --fresh) goes on from there."


def report_or_point_to_it(options: argparse.Namespace, finished: runner.Finished) -> int:
    """What follows the last answer: the report of --methods, else the command that makes one. Returns the exit code."""
    if not options.methods:
        print(f"answers: {finished.files[0]}   (table: python -m eval.report {finished.files[0]})")
    elif Ranks.of_environment().world > 1:
        print(f"this shard is done; when all are: python -m eval.report {options.output}")
    else:
        from eval.report import report

        report.write([str(path) for path in finished.files], Path(options.output))
    return 1 if finished.left_out else 0


def main(argv: list[str] | None = None, load: Load = load_models.load) -> int:
    """The command; returns the exit code: 0, 1 where a method was left out, 2 for an error, 130 when interrupted."""
    runs: list[runner.MethodRun] = []

    def work(options: argparse.Namespace) -> int:
        return report_or_point_to_it(options, evaluate(options, load, runs))

    return command.start(flags.build_parser(__doc__ or ""), work, argv, lambda _: kept(runs))


if __name__ == "__main__":
    raise SystemExit(main())
