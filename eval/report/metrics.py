"""What is measured, and how it is named.

    accepted / step   draft tokens emitted per target call, the bonus token left out
    tau               tokens emitted per target call, the bonus token included (EAGLE's tau, vLLM's acceptance length)
    E[accepted]       the same as accepted / step, from the stopping law: its mean over steps, without the noise of the
                      draw that decides a step
    tok/s             generated tokens / wall seconds of generation, prompt included, device idle at both ends
    speedup           tok/s over the tok/s of `plain`: same engine, same target, same run, same questions
    accuracy          share of answers that are right: GSM8K's final number, MATH's final expression
                      (eval/questions/grading.py), HumanEval's code where it was run (eval/questions/execution.py)
    against plain     accuracy minus that of `plain`, paired over the questions both answered

A *step* is one target call that scores a tree. The prompt's own forward yields the first token and is not a step, so
an answer of n tokens in s steps has tau (n - 1) / s. Nothing after an end-of-answer token or past the token limit is
generated, counted or timed. A step cut short by either (`truncated`: at most one per turn, its last) counts in tau and
accepted / step with what it really emitted; E[accepted] is that of the whole step, so it lies a little above accepted /
step (by at most depth / steps-per-turn). Acceptance by depth and the distribution of accepted lengths leave truncated
steps out.

Ratios are ratios of sums over questions (long answers weigh more, as they do in time). Their 95 % intervals resample
*questions* with replacement (percentile bootstrap, fixed seed): steps of one answer are not independent. Differences
between methods resample the questions both answered, keeping pairs together. An accuracy's interval is Wilson's.
Questions that failed are in no number; how many there were is shown.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from eval.questions.grading import can_be_marked, is_correct
from eval.report.estimates import Estimate, bootstrap, ratio, wilson
from eval.run.answers import PHASES, Answers, Record


def question_sum(entry: Record, name: str) -> float:
    """One question's total over its turns: `steps`, `tokens`, `seconds`, or a quantity recorded per step."""
    turns = entry["measured"]
    if name == "steps":
        return sum(len(turn["steps"]["emitted"]) for turn in turns)
    if name == "tokens":
        return sum(len(turn["tokens"]) for turn in turns)
    if name == "seconds":
        return sum(turn["seconds"] for turn in turns)
    return sum(sum(turn["steps"][name]) for turn in turns)


def finished(answers: Answers) -> dict[int, Record]:
    """The questions that did not fail, by id."""
    return {entry["question_id"]: entry for entry in answers.records if entry["error"] is None}


def column(entries: Sequence[Record], name: str) -> np.ndarray:
    """Float[questions]: `question_sum` of each."""
    return np.array([question_sum(entry, name) for entry in entries], dtype=float)


def ratio_of(entries: Sequence[Record], above: str, below: str) -> Estimate | None:
    """One sum over another, with its interval; None without a question or where the divisor is 0."""
    return bootstrap(ratio, column(entries, above), column(entries, below))


def paired(first: Answers, second: Answers) -> list[tuple[Record, Record]]:
    """The questions both methods answered, in order."""
    left, right = finished(first), finished(second)
    return [(left[i], right[i]) for i in sorted(left.keys() & right.keys())]


def between(
    first: Answers, second: Answers, above: str, below: str, compare: Callable[[Any, Any], Any]
) -> Estimate | None:
    """`compare` of a ratio of the first method and the same ratio of the second's, paired over questions."""
    pairs = paired(first, second)
    ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return bootstrap(
        lambda a, s, b, t: compare(ratio(a, s), ratio(b, t)),
        column(ours, above),
        column(ours, below),
        column(theirs, above),
        column(theirs, below),
    )


def speedup(method: Answers, plain: Answers) -> Estimate | None:
    """tok/s of a method over tok/s of `plain`, on the questions both answered."""
    return between(method, plain, "tokens", "seconds", ratio)


def difference(first: Answers, second: Answers, above: str, below: str) -> Estimate | None:
    """A ratio of the first method minus the second's, paired over questions."""
    return between(first, second, above, below, operator.sub)


def gain(first: Answers, second: Answers, above: str, below: str) -> Estimate | None:
    """A ratio of the first method over the second's, less 1, paired over questions."""
    return between(first, second, above, below, lambda ours, theirs: ratio(ours, theirs) - 1)


def judged(entry: Record) -> bool:
    """Whether the answer's code was run, or the question has a reference that marks it."""
    return entry.get("passed") is not None or can_be_marked(entry["reference"])


def correct(entry: Record) -> bool:
    """Whether the last turn's code passed, or its answer ends on what the reference has."""
    passed: bool | None = entry.get("passed")
    return passed if passed is not None else is_correct(entry["choices"][0]["turns"][-1], entry["reference"])


def accuracy(entries: Sequence[Record]) -> Estimate | None:
    """Share of right answers among those that can be judged, with Wilson's interval."""
    answers = [correct(entry) for entry in entries if judged(entry)]
    return wilson(sum(answers), len(answers))


def accuracy_difference(first: Answers, second: Answers) -> Estimate | None:
    """Accuracy of the first method minus the second's, paired over the questions both answered."""
    pairs = [pair for pair in paired(first, second) if judged(pair[0]) and judged(pair[1])]
    ours, theirs = (np.array([float(correct(pair[i])) for pair in pairs]) for i in (0, 1))
    return bootstrap(lambda a, b, n: ratio(a - b, n), ours, theirs, np.ones(len(pairs)))


def whole_steps(entries: Sequence[Record]) -> np.ndarray:
    """Accepted length of every step that was not truncated."""
    return np.array(
        [
            accepted
            for entry in entries
            for turn in entry["measured"]
            for accepted, cut in zip(turn["steps"]["accepted"], turn["steps"]["truncated"], strict=True)
            if not cut
        ],
        dtype=int,
    )


def accepted_distribution(entries: Sequence[Record]) -> list[float]:
    """Share of steps that accepted exactly 0, 1, 2, ... tokens."""
    lengths = whole_steps(entries)
    return (np.bincount(lengths) / len(lengths)).tolist() if len(lengths) else []


def acceptance_by_depth(entries: Sequence[Record]) -> list[float]:
    """Share of steps that accepted at least 1, 2, 3, ... tokens. Its sum is the mean accepted length."""
    distribution = np.array(accepted_distribution(entries))
    return distribution[::-1].cumsum()[::-1][1:].tolist()


def phase_milliseconds(entries: Sequence[Record]) -> dict[str, float] | None:
    """Mean milliseconds per step in each phase."""
    steps = column(entries, "steps").sum()
    return {phase: 1000 * column(entries, phase).sum() / steps for phase in PHASES} if steps else None


def runaways(entries: Sequence[Record]) -> list[int]:
    """Questions with an answer that ran into the token limit or the context's end instead of ending."""
    return [
        entry["question_id"] for entry in entries if any(turn["stop_reason"] != "eos" for turn in entry["measured"])
    ]


def same_tokens(first: Answers, second: Answers) -> tuple[int, int]:
    """On how many of the shared questions two methods gave the very same tokens (expected of all at temperature 0)."""
    pairs = paired(first, second)
    same = sum([t["tokens"] for t in a["measured"]] == [t["tokens"] for t in b["measured"]] for a, b in pairs)
    return same, len(pairs)


def categories(entries: Sequence[Record]) -> dict[str, list[Record]]:
    """The entries by category, in order of appearance."""
    grouped: dict[str, list[Record]] = {}
    for entry in entries:
        grouped.setdefault(entry["category"], []).append(entry)
    return grouped
