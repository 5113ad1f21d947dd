"""Question by question, method by method: the loop that produces answer files.

Methods alternate inside every question, and the one that begins changes from question to question, so that a machine
that slows down slows all of them alike. What an answer is depends on (seed, question, turn) only: not on the order of
methods, on a resumed run, or on which shard asked. A question that fails is written down with its error.
"""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from eval.questions import prompts
from eval.questions.benchmarks import Question
from eval.runs.answers import AnswerFile, record
from eval.runs.methods import Decoding, Method, Turn

WARM_UP_TOKENS = 16
WARM_UP_PROMPT = "How many apples are in three bags of four apples?"


class Task(NamedTuple):
    """What every method of a run shares: the engine, how prompts are written, how answers are drawn."""

    engine: Any
    style: prompts.PromptFormat
    decoding: Decoding
    seed: int = 0
    system_prompt: str | None = None


class Job(NamedTuple):
    """One method and the file its answers go to."""

    method: Method
    answers: AnswerFile


def seed_of(seed: int, question: int, turn: int) -> int:
    """A generator's seed for one turn of one question (its index in the whole benchmark, not in a shard)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{question}/{turn}".encode()).digest()[:8], "big") >> 1


def shard(count: int, rank: int, world: int) -> list[int]:
    """The question indices of one rank: every `world`-th, so that long and short categories spread evenly."""
    return list(range(rank, count, world))


def answer_turn(task: Task, method: Method, messages: prompts.Messages, seed: int) -> tuple[Turn, str]:
    """Generate the next assistant message; the turn and its text."""
    generator = torch.Generator(device=task.engine.device).manual_seed(seed)
    ids = prompts.encode(task.engine.tokenizer, task.style, messages)
    turn = method.answer(task.engine, method, ids, task.decoding, generator)
    return turn, task.engine.tokenizer.decode(turn.tokens, skip_special_tokens=True).strip()


def answer_question(task: Task, job: Job, question: Question, index: int) -> dict[str, Any]:
    """All turns of a question, each answer fed back before the next turn, as a record."""
    messages = [{"role": "system", "content": task.system_prompt}] if task.system_prompt else []
    turns: list[Turn] = []
    texts: list[str] = []
    error = None
    try:
        for number, text in enumerate(question.turns):
            messages.append({"role": "user", "content": text})
            turn, answer = answer_turn(task, job.method, messages, seed_of(task.seed, index, number))
            turns.append(turn)
            texts.append(answer)
            messages.append({"role": "assistant", "content": answer})
    except Exception as problem:  # whatever it is, it belongs to this question: the other questions go on
        error = f"{type(problem).__name__}: {problem}"
    return record(question, job.method.name, texts, turns, error, job.answers.session)


def warm_up(task: Task, jobs: list[Job]) -> None:
    """A short answer by every method, not recorded. A method that cannot run at all stops the run here."""
    short = task._replace(decoding=task.decoding._replace(max_new_tokens=WARM_UP_TOKENS))
    for job in jobs:
        answer_turn(short, job.method, [{"role": "user", "content": WARM_UP_PROMPT}], seed=0)


def tally(totals: Counter, entry: dict[str, Any]) -> None:
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
    task: Task, jobs: list[Job], questions: list[Question], rank: int = 0, world: int = 1, quiet: bool = False
) -> list[Path]:
    """Answer what is not answered yet. Returns the files; every record is on disk before the next one begins."""
    mine = shard(len(questions), rank, world)
    left = {index: [job for job in jobs if questions[index].question_id not in job.answers.done] for index in mine}
    if any(left.values()):
        warm_up(task, jobs)
    totals = {job.method.name: Counter() for job in jobs}
    for job in jobs:
        for entry in job.answers.done.values():
            tally(totals[job.method.name], entry)
    count = len(mine) * len(jobs)
    with tqdm(
        total=count,
        initial=count - sum(map(len, left.values())),
        disable=quiet or rank > 0,
        unit="answer",
        dynamic_ncols=True,
    ) as bar:
        for position, index in enumerate(mine):
            start = position % len(jobs)
            for job in [*jobs[start:], *jobs[:start]]:
                if job not in left[index]:
                    continue
                entry = answer_question(task, job, questions[index], index)
                job.answers.add(entry)
                tally(totals[job.method.name], entry)
                bar.set_postfix_str(progress_text(job.method.name, totals[job.method.name]), refresh=False)
                bar.update()
    return [job.answers.path for job in jobs]
