"""From answer files to the numbers of a report: one section per setting, one row per method, plain JSON values.

Methods share a section when everything but the method is the same: questions, models, temperature, seed, limits. Only
those are compared.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.report import metrics
from eval.report.estimates import Estimate
from eval.report.metrics import difference, ratio_of
from eval.run.answers import WEIGHTS, Answers, Record
from eval.run.methods import METHODS, PLAIN

PUBLISHED = Path(__file__).parent / "published.json"
OF_THE_METHOD = ("method", "tree", "verifier", "lossy")

Section = dict[str, Any]


def shared_settings(answers: Answers) -> Record:
    """The settings without those of the method."""
    return {name: value for name, value in answers.settings.items() if name not in OF_THE_METHOD}


def comparable(answers: Answers) -> str:
    """Equal for runs that belong in one section. Weights with a fingerprint may lie anywhere."""
    shared = shared_settings(answers)
    moved = {path for path, mark in WEIGHTS.items() if shared.get(mark)}
    return json.dumps({name: value for name, value in shared.items() if name not in moved}, sort_keys=True)


def sections(runs: Sequence[Answers]) -> list[Section]:
    """Runs grouped by their settings, each group summarised."""
    groups: dict[str, list[Answers]] = {}
    for run in runs:
        groups.setdefault(comparable(run), []).append(run)
    return [section(group) for group in groups.values()]


def in_order(runs: Sequence[Answers]) -> list[Answers]:
    """Methods as the registry lists them. Raises ValueError when one of them appears twice with the same settings."""
    names = [run.name for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"method {twice!r} appears twice with the same settings; pass each answer file once")
    known = list(METHODS)
    return sorted(runs, key=lambda run: known.index(run.name) if run.name in known else len(known))


def section(runs: Sequence[Answers]) -> Section:
    """Everything a report says about methods with equal settings."""
    runs, settings = in_order(runs), shared_settings(runs[0])
    plain = next((run for run in runs if run.name == PLAIN), None)
    runaway = sorted({i for run in runs for i in metrics.runaways(list(metrics.finished(run).values()))})
    return {
        "title": title(settings),
        "settings": settings,
        "rows": [row(run, plain, set(runaway)) for run in runs],
        "pairs": [pair(first, second) for first, second in comparisons(runs)],
        "published": published_for(settings),
        "sessions": [session for run in runs for session in run.sessions],
    }


def title(settings: Record) -> str:
    """`gsm8k (eagle80), 80 questions, temperature 1`."""
    sampling = "greedy" if settings["temperature"] == 0 else f"temperature {settings['temperature']:g}"
    neutral = {"top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1}
    for setting, off in neutral.items():
        if settings.get(setting, off) != off:
            sampling += f", {setting} {settings[setting]:g}"
    named = settings["protocol"] if settings["protocol"] != "file" else Path(settings["questions"]).name
    return f"{settings['bench']} ({named}), {settings['num_questions']} questions, {sampling}"


def rates(entries: Sequence[Record]) -> dict[str, Estimate | None]:
    """The four ratios of a row or a category."""
    return {
        "tau": ratio_of(entries, "emitted", "steps"),
        "accepted": ratio_of(entries, "accepted", "steps"),
        "expected": ratio_of(entries, "expected", "steps"),
        "tok_s": ratio_of(entries, "tokens", "seconds"),
    }


def row(run: Answers, plain: Answers | None, runaway: set[int]) -> Record:
    """One method's numbers."""
    entries = list(metrics.finished(run).values())
    calm = [entry for entry in entries if entry["question_id"] not in runaway]
    same = metrics.same_tokens(run, plain) if plain and run is not plain else None
    return {
        "method": run.name,
        "tree": run.settings["tree"],
        "verifier": run.settings["verifier"],
        "lossy": run.settings["lossy"],
        "n": len(entries),
        "errors": {str(e["question_id"]): e["error"] for e in run.records if e["error"] is not None},
        "steps": int(metrics.column(entries, "steps").sum()),
        "tokens": int(metrics.column(entries, "tokens").sum()),
        **rates(entries),
        "speedup": metrics.speedup(run, plain) if plain else None,
        "accuracy": metrics.accuracy(entries),
        "accuracy_against_plain": metrics.accuracy_difference(run, plain) if plain and run is not plain else None,
        "same_as_plain": same,
        "runaways": metrics.runaways(entries),
        "tau_without_runaways": ratio_of(calm, "emitted", "steps"),
        "acceptance_by_depth": metrics.acceptance_by_depth(entries),
        "accepted_distribution": metrics.accepted_distribution(entries),
        "milliseconds": metrics.phase_milliseconds(entries),
        "categories": {name: {"n": len(some), **rates(some)} for name, some in metrics.categories(entries).items()},
    }


def comparisons(runs: Sequence[Answers]) -> list[tuple[Answers, Answers]]:
    """Pairs that differ in one thing, another verifier on the same tree or another tree under the same verifier; and
    hybrid trees verified by HSD against EAGLE-3's own tree and rule, whichever of the two comes first.
    """
    drafting = [
        run
        for run in runs
        if any(turn["steps"]["emitted"] for e in run.records for turn in e["measured"])
        and run.settings["tree"] != "none"
    ]
    alike = [
        (second, first)
        for i, first in enumerate(drafting)
        for second in drafting[i + 1 :]
        if (first.settings["tree"] == second.settings["tree"])
        != (first.settings["verifier"] == second.settings["verifier"])
    ]
    by_rule = {(run.settings["tree"], run.settings["verifier"]): run for run in drafting}
    ours, eagle = by_rule.get(("hybrid", "hsd")), by_rule.get(("topk", "token"))
    return alike + ([(ours, eagle)] if ours and eagle else [])


def pair(first: Answers, second: Answers) -> Record:
    """First minus second, on the questions both answered."""
    return {
        "first": first.name,
        "second": second.name,
        "n": len(metrics.paired(first, second)),
        "tau": difference(first, second, "emitted", "steps"),
        "expected": difference(first, second, "expected", "steps"),
        "expected_gain": metrics.gain(first, second, "expected", "steps"),
        "tok_s": difference(first, second, "tokens", "seconds"),
    }


def published_for(settings: Record) -> list[Record]:
    """Published numbers for this very target, drafter, question set and temperature."""
    target = Path(settings["base_model_path"]).name.lower()
    drafter = Path(settings["ea_model_path"] or settings["draft_model_path"] or "").name.lower()
    return [
        entry
        for entry in json.loads(PUBLISHED.read_text(encoding="utf-8"))
        if entry["target"] in target
        and entry["head"] in drafter
        and entry["bench"] == settings["bench"]
        and entry["protocol"] in (None, settings["protocol"])  # null: the source does not say which questions
        and entry["temperature"] == settings["temperature"]
    ]
