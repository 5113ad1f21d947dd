"""A section's numbers as tables."""

from typing import Any

from eval.report.markdown import Table, markdown_table, number, percent, times
from eval.report.summary import Section
from eval.run.answers import PHASES, WEIGHTS, Record

SLOWER = " (slower)"


def speedup_text(estimate: Any) -> str:
    """`1.61x [1.55x, 1.67x]`; a speedup whose interval lies below 1 is marked as a slowdown."""
    slower = estimate is not None and (estimate[0] if estimate[2] is None else estimate[2]) < 1
    return times(estimate) + (SLOWER if slower else "")


def name(row: Record) -> str:
    """The method's name, marked where its rule is not lossless."""
    return row["method"] + (" (not lossless)" if row["lossy"] else "")


def published_text(section: Section, row: Record) -> str:
    """The published numbers of a row's method; a dash where there is none."""
    found = [
        f"{entry['metric']} {entry['value']:g}{'' if entry['confirmed'] else ' (unconfirmed)'}"
        for entry in section["published"]
        if entry["method"] == row["method"]
    ]
    return "; ".join(found) or "–"


def headline(section: Section) -> Table:
    """One row per method, acceptance length first."""
    header = ["method", "tau", "accepted/step", "E[accepted]", "tok/s", "speedup", "n"]
    judged = any(row["accuracy"] for row in section["rows"])
    greedy = section["settings"]["temperature"] == 0
    rows = []
    for row in section["rows"]:
        drafts = row["tree"] != "none"
        cells = [
            name(row),
            number(row["tau"]),
            number(row["accepted"] if drafts else None),
            number(row["expected"] if drafts else None),
            number(row["tok_s"], 1),
            speedup_text(row["speedup"]),
            str(row["n"]),
        ]
        cells += [percent(row["accuracy"])] if judged else []
        if greedy:
            same = row["same_as_plain"]
            cells.append("–" if same is None else f"{same[0]} of {same[1]}")
        cells += [published_text(section, row)] if section["published"] else []
        rows.append(cells)
    header += (["accuracy"] if judged else []) + (["same tokens as plain"] if greedy else [])
    header += ["published"] if section["published"] else []
    note = (
        "tau counts the bonus token, accepted/step does not; brackets are 95 % intervals over questions. "
        "Speedup is over `plain` on the same engine, run and questions; (slower): the interval lies below 1."
    )
    return Table("Result", note, header, rows)


def differences(section: Section) -> Table:
    """Every two methods that differ in one thing, and hybrid + HSD against EAGLE-3's own."""
    rows = [
        [
            f"{pair['first']} - {pair['second']}",
            number(pair["tau"], sign="+"),
            number(pair["expected"], sign="+"),
            percent(pair["expected_gain"], "+"),
            number(pair["tok_s"], 1, "+"),
            str(pair["n"]),
        ]
        for pair in section["pairs"]
    ]
    return Table(
        "Paired differences",
        "The same questions under both methods, resampled together. An interval with 0 in it shows no difference.",
        ["methods", "tau", "E[accepted]", "E[accepted] gain", "tok/s", "n"],
        rows,
    )


def step_times(section: Section) -> Table:
    """Where a step's time goes."""
    timed = [row for row in section["rows"] if row["milliseconds"]]
    rows = [
        [
            name(row),
            *(f"{row['milliseconds'][phase]:.2f}" for phase in PHASES),
            f"{sum(row['milliseconds'].values()):.2f}",
            str(row["steps"]),
        ]
        for row in timed
    ]
    return Table(
        "Milliseconds per step",
        "On a GPU a phase that only queues work looks short, and the phase that "
        "waits for it (commit) looks long; their sum is right.",
        ["method", *PHASES, "step", "steps"],
        rows,
    )


def by_depth(section: Section) -> Table:
    """How deep drafts are accepted."""
    drafting = [row for row in section["rows"] if row["acceptance_by_depth"]]
    depth = max((len(row["acceptance_by_depth"]) for row in drafting), default=0)
    rows = [
        [
            name(row),
            *(f"{share:.2f}" for share in row["acceptance_by_depth"]),
            *["0.00"] * (depth - len(row["acceptance_by_depth"])),
        ]
        for row in drafting
    ]
    return Table(
        "Acceptance by depth",
        "Share of steps that accepted at least this many draft tokens (steps cut short are left out).",
        ["method", *(str(i + 1) for i in range(depth))],
        rows,
    )


def against_plain(section: Section) -> Table:
    """Accuracy of every method beside plain decoding's: a lossless method's is the same up to chance."""
    rows = [
        [name(row), percent(row["accuracy"]), percent(row["accuracy_against_plain"], "+"), str(row["n"])]
        for row in section["rows"]
        if row.get("accuracy_against_plain") is not None
    ]
    return Table(
        "Accuracy against plain decoding",
        "Paired over questions. An interval with 0 in it shows no difference.",
        ["method", "accuracy", "minus plain", "n"],
        rows,
    )


def by_category(section: Section) -> Table:
    """Acceptance length per category; empty with fewer than two."""
    names = sorted({category for row in section["rows"] for category in row["categories"]})
    if len(names) < 2:
        return Table("By category", "", [], [])
    rows = [
        [name(row), *(number(row["categories"].get(category, {}).get("tau")) for category in names)]
        for row in section["rows"]
        if row["tau"] and row["tree"] != "none"
    ]
    return Table("tau by category", "", ["method", *names], rows)


def runaway_answers(section: Section) -> Table:
    """Answers that did not end by themselves."""
    rows = [
        [
            name(row),
            str(len(row["runaways"])),
            ", ".join(map(str, row["runaways"][:20])) + (" ..." if len(row["runaways"]) > 20 else ""),
            number(row["tau"]),
            number(row["tau_without_runaways"]),
        ]
        for row in section["rows"]
        if row["runaways"]
    ]
    return Table(
        "Runaway answers",
        "Answers that hit the token limit or the context's end. They are long and "
        "repetitive, so they weigh much; the last column leaves out every question on which any method ran "
        "away.",
        ["method", "count", "question ids", "tau", "tau without them"],
        rows,
    )


def failures(section: Section) -> Table:
    """Questions that a method could not answer."""
    rows = [[name(row), question, error] for row in section["rows"] for question, error in row["errors"].items()]
    return Table("Failed questions", "In no number above.", ["method", "question", "error"], rows)


def published(section: Section) -> Table:
    """Numbers others published for this very setting."""
    rows = [
        [
            entry["method"],
            f"{entry['metric']} {entry['value']:g}",
            entry["definition"],
            entry["hardware"] or "–",
            entry["source"] + ("" if entry["confirmed"] else " (unconfirmed)"),
        ]
        for entry in section["published"]
    ]
    return Table(
        "Published numbers",
        "For the same target, drafter, question set and temperature; each with its own definition.",
        ["method", "number", "definition", "hardware", "source"],
        rows,
    )


def origin(section: Section) -> Table:
    """What the numbers were made with."""
    settings, session = section["settings"], section["sessions"][-1]
    commits = sorted(
        {
            f"{(s['git']['commit'] or 'unknown')[:12]}{' + changes' if s['git']['dirty'] else ''}"
            for s in section["sessions"]
        }
    )
    hardware = session["hardware"]
    processor = ", ".join(map(str, hardware["gpus"])) or hardware["cpu"]
    machine = f"{processor}, {hardware['cores']} cores, {hardware['threads']} threads"
    shown = (
        "base_model_path",
        "ea_model_path",
        "draft_model_path",
        *WEIGHTS.values(),
        "dtype",
        "template",
        "system_prompt",
        "seed",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "max_new_tokens",
        "nodes",
        "depth",
        "width",
        "questions",
    )
    rows = [[key, str(settings[key])] for key in shown if settings.get(key) is not None]
    versions = ", ".join(f"{key} {value}" for key, value in session["versions"].items() if value)
    rows += [
        ["git commit", ", ".join(commits)],
        ["machine", machine],
        ["python", session["python"]],
        ["versions", versions],
    ]
    return Table("Made with", "", ["", ""], rows)


DETAILS = (differences, against_plain, step_times, by_depth, by_category, runaway_answers, failures, published, origin)


def tables(section: Section) -> list[Table]:
    """Every table of a section that has rows, the headline first."""
    return [table for table in (headline(section), *(build(section) for build in DETAILS)) if table.rows]


def markdown(section: Section) -> str:
    """A section of report.md."""
    parts = [f"## {section['title']}"]
    for table in tables(section):
        parts += [f"### {table.title}", *([table.note] if table.note else []), markdown_table(table.header, table.rows)]
    return "\n\n".join(parts) + "\n"
