"""Question by question, method by method: the loop that produces answer files.

Methods alternate inside every question, and the one that begins changes from question to question, so that a machine
that slows down slows all of them alike. What an answer is depends on (seed, question, turn) only: not on the order of
methods, on a resumed run, or on which shard asked. A question that fails is written down with its error; a method that
fails before the first question is left out. Both are said on stderr in one line.
"""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from eagle.command import one_line
from eagle.digests import seed_of
from eval.questions import prompts
from eval.questions.benchmarks import Question
from eval.run.answers import AnswerFile, Record, answer_record, measured
from eval.run.methods import Decoding, Method, Models

WARM_UP_TOKENS = 16
WARM_UP_PROMPT = "How many apples are in three bags of four apples?"


class Task(NamedTuple):
    """What every method of a run shares: the models, how prompts are written, how answers are drawn."""

    models: Models
    style: prompts.PromptFormat
    decoding: Decoding
    seed: int = 0
    system_prompt: str | None = None
    model_id: str | None = None  # names the answers; None: the method does
    passes: Callable[[Question, list[str]], bool] | None = None  # marks an answer by its texts; None: nothing is run


class MethodRun(NamedTuple):
    """One method and the file its answers go to."""

    method: Method
    answers: AnswerFile


class Finished(NamedTuple):
    """The files of the methods that answered, and by name why the others could not."""

    files: list[Path]
    left_out: dict[str, str]


def shard(count: int, rank: int, world: int) -> list[int]:
    """The question indices of one rank: every `world`-th, so that long and short categories spread evenly."""
    return list(range(rank, count, world))


def answer_turn(task: Task, method: Method, messages: prompts.Messages, seed: int) -> tuple[Record, str]:
    """Generate the next assistant message: what was measured, and the text."""
    engine = task.models.engine
    generator = torch.Generator(device=engine.device).manual_seed(seed)
    ids = prompts.encode(engine.tokenizer, task.style, messages)
    turn = method.answer(task.models, method, ids, task.decoding, generator)
    return measured(turn), engine.tokenizer.decode(turn.tokens, skip_special_tokens=True).strip()


def answer_question(task: Task, run: MethodRun, question: Question, index: int) -> Record:
    """All turns of a question, each answer fed back before the next turn, as a line of the answer file."""
    messages = [{"role": "system", "content": task.system_prompt}] if task.system_prompt else []
    turns: list[Record] = []
    texts: list[str] = []
    error = None
    try:
        for number, text in enumerate(question.turns):
            messages.append({"role": "user", "content": text})
            turn, answer = answer_turn(task, run.method, messages, seed_of(task.seed, index, number))
            turns.append(turn)
            texts.append(answer)
            messages.append({"role": "assistant", "content": answer})
    except Exception as problem:  # whatever it is, it belongs to this question: the other questions go on
        error = cause(problem)
        say(f"{run.method.name}, question {question.question_id}: {error}")
    record = answer_record(question, task.model_id or run.method.name, texts, turns, error, run.answers.session)
    if task.passes is not None and error is None:
        record["passed"] = task.passes(question, texts)
    return record


def cause(problem: Exception) -> str:
    """An exception as one line: its type and its message."""
    return f"{type(problem).__name__}: {one_line(problem)}"


def say(line: str) -> None:
    """A line on stderr that leaves the progress bar whole."""
    tqdm.write(line, file=sys.stderr)


def warm_up(task: Task, runs: list[MethodRun]) -> dict[str, str]:
    """A short answer by every method, not recorded. By name, why a method cannot run."""
    short = task._replace(decoding=task.decoding._replace(max_new_tokens=WARM_UP_TOKENS))
    failed = {}
    for run in runs:
        try:
            answer_turn(short, run.method, [{"role": "user", "content": WARM_UP_PROMPT}], seed=0)
        except Exception as problem:  # whatever it is, it belongs to this method: the other methods go on
            failed[run.method.name] = cause(problem)
            say(f"{run.method.name} is left out, it fails on the warm-up prompt {WARM_UP_PROMPT!r}: {cause(problem)}")
    return failed


def tally(totals: Counter, entry: Record) -> None:
    """Add one question to a method's running totals."""
    for turn in entry["measured"]:
        totals["steps"] += len(turn["steps"]["emitted"])
        totals["emitted"] += sum(turn["steps"]["emitted"])
        totals["tokens"] += len(turn["tokens"])
        totals["seconds"] += turn["seconds"]
    totals["errors"] += entry["error"] is not None


def progress_text(name: str, totals: Counter) -> str:
    """`topk+hsd tau 4.21 87 tok/s`, over everything this method has answered so far."""
    tau = f" tau {totals['emitted'] / totals['steps']:.2f}" if totals["steps"] else ""
    speed = f" {totals['tokens'] / totals['seconds']:.0f} tok/s" if totals["seconds"] else ""
    errors = f" {totals['errors']} failed" if totals["errors"] else ""
    return name + tau + speed + errors


def run(
    task: Task, runs: list[MethodRun], questions: list[Question], rank: int = 0, world: int = 1, quiet: bool = False
) -> Finished:
    """Answer what is not answered yet; every line is on disk before the next answer begins.

    Raises ValueError when no method passes the warm-up.
    """
    mine = shard(len(questions), rank, world)
    unfinished = [one for one in runs if any(questions[i].question_id not in one.answers.done for i in mine)]
    left_out = warm_up(task, unfinished)
    runs = [one for one in runs if one.method.name not in left_out]
    if not runs:
        raise ValueError(
            "no method passes the warm-up: " + "; ".join(f"{name}: {why}" for name, why in left_out.items())
        )
    totals: dict[str, Counter] = {one.method.name: Counter() for one in runs}
    for one in runs:
        for entry in one.answers.done.values():
            tally(totals[one.method.name], entry)
    left = {index: [one for one in runs if questions[index].question_id not in one.answers.done] for index in mine}
    count, watched = len(mine) * len(runs), sys.stderr.isatty()
    quiet = quiet or rank > 0
    with tqdm(
        total=count,
        initial=count - sum(map(len, left.values())),
        disable=quiet or not watched,
        unit="answer",
        dynamic_ncols=True,
    ) as bar:
        for position, index in enumerate(mine):
            start = position % len(runs)
            for one in [*runs[start:], *runs[:start]]:
                if one not in left[index]:
                    continue
                entry = answer_question(task, one, questions[index], index)
                one.answers.add(entry)
                tally(totals[one.method.name], entry)
                bar.set_postfix_str(progress_text(one.method.name, totals[one.method.name]), refresh=False)
                bar.update()
            if left[index] and not (quiet or watched):  # a log
                rates = ", ".join(progress_text(*one) for one in totals.items())
                say(f"question {position + 1} of {len(mine)}: {rates}")
    return Finished([one.answers.path for one in runs], left_out)
