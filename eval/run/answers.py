"""Answer files: FastChat's MT-Bench schema, one line per question, with the measurements beside the text.

    F.jsonl            {question_id, answer_id, model_id, choices: [{index, turns, idxs, new_tokens, wall_time}],
                        tstamp, category, reference, error, session, measured: [one dict per turn]},
                        with --run-code `passed`
    F.meta.json        the settings that make the answers what they are, and the provenance of every session that wrote
    F.rank0-of-2.jsonl the first of two shards; `read` puts the shards of a run together again

`choices[0].idxs`, `new_tokens`, `wall_time` are what EAGLE's scripts read: the index of a turn's last step (one less
than its steps), its tokens, its seconds.
`measured[t]` holds the tokens, the plan that decoded them (tree, verifier, nodes, depth) and, per decoding step, lists:
accepted, emitted, expected, nodes, truncated, and the seconds of each phase.
"""

import json
import math
import re
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

from eagle import jsonl
from eagle.files import parse_json, write_whole
from eval.questions.benchmarks import Question, shown
from eval.run.methods import SAMPLING, Turn

SCHEMA = 1
PHASES = ("draft", "score", "verify", "commit")
COUNTS = ("accepted", "emitted", "nodes", "truncated")  # of a step, besides E[accepted] and the seconds of each phase
SHARD = re.compile(r"\.rank(\d+)-of-(\d+)$")
# Which weights: the path, and the fingerprint that is compared in its place where there is one.
WEIGHTS = {
    "base_model_path": "base_model_fingerprint",
    "ea_model_path": "ea_model_fingerprint",
    "draft_model_path": "draft_model_fingerprint",
}
# What a report reads of the settings and of a session, and its types.
SETTINGS: dict[str, Any] = {
    **dict.fromkeys(("method", "tree", "verifier", "bench", "protocol", "questions", "base_model_path"), str),
    **dict.fromkeys(("ea_model_path", "draft_model_path"), str | None),
    "lossy": bool,
    "num_questions": int,
    "temperature": int | float,
}
SESSION: dict[str, Any] = {"git": dict, "hardware": dict, "versions": dict, "python": str}
SESSION_PARTS: dict[str, dict[str, Any]] = {
    "git": {"commit": str | None, "dirty": bool | None},
    "hardware": {"cpu": str, "cores": int | None, "threads": int, "gpus": list},
}

Record = dict[str, Any]


def shard_path(path: Path, rank: int, world: int) -> Path:
    """The file of one rank of a run over `world` processes."""
    return path if world == 1 else path.with_name(f"{path.stem}.rank{rank}-of-{world}{path.suffix}")


def meta_path(path: Path) -> Path:
    """Where the settings of an answer file lie."""
    return path.with_name(f"{path.name.removesuffix('.jsonl')}.meta.json")


def rounded(seconds: float) -> float:
    """Seconds to the microsecond."""
    return round(seconds, 6)


# --- writing ---------------------------------------------------------------------------------------------------------


def measured(turn: Turn) -> Record:
    """A turn's measurements as JSON: lists over steps, seconds to the microsecond.

    Raises ValueError where E[accepted] is not finite: then the head's or the target's outputs were not.
    """
    steps = turn.steps
    for number, step in enumerate(steps):
        if not math.isfinite(step.expected_accepted):
            raise ValueError(
                f"E[accepted] of step {number} is {step.expected_accepted}: the draft head's or the target's "
                "probabilities are not finite; check the weights, or use another dtype"
            )
    return {
        "prompt_tokens": turn.prompt_tokens,
        "tokens": turn.tokens,
        "seconds": rounded(turn.seconds),
        "prefill_seconds": None if turn.prefill_seconds is None else rounded(turn.prefill_seconds),
        "stop_reason": turn.stop_reason,
        "plan": None if turn.plan is None else turn.plan._asdict(),
        "steps": {
            "accepted": [int(step.accepted) for step in steps],
            "emitted": [int(step.emitted) for step in steps],
            "expected": [round(float(step.expected_accepted), 6) for step in steps],
            "nodes": [int(step.nodes) for step in steps],
            "truncated": [int(step.truncated) for step in steps],
            **{phase: [rounded(step.seconds.get(phase, 0.0)) for step in steps] for phase in PHASES},
        },
    }


def answer_record(
    question: Question, model_id: str, texts: list[str], turns: list[Record], error: str | None, session: int
) -> Record:
    """One line of an answer file. A question that failed keeps the turns it finished, and its error.

    turns    what `measured` gives, one per text
    """
    return {
        "question_id": question.question_id,
        "answer_id": uuid.uuid4().hex[:22],
        "model_id": model_id,
        "choices": [
            {
                "index": 0,
                "turns": texts,
                "idxs": [len(turn["steps"]["emitted"]) - 1 for turn in turns],
                "new_tokens": [len(turn["tokens"]) for turn in turns],
                "wall_time": [turn["seconds"] for turn in turns],
            }
        ],
        "tstamp": time.time(),
        "category": question.category,
        "reference": question.reference,
        "error": error,
        "session": session,
        "measured": turns,
    }


def changed_settings(before: Record, now: Record) -> list[str]:
    """Names of the settings that make two runs different.

    A question file may move, as its hash says what is in it; so may weights that have a fingerprint.
    """
    moved = {path for path, mark in WEIGHTS.items() if before.get(mark) and before.get(mark) == now.get(mark)}
    names = sorted((before.keys() | now.keys()) - {"questions"} - moved)
    return [name for name in names if before.get(name) != now.get(name)]


def check_same_settings(path: Path, before: Record, now: Record) -> None:
    """Raise ValueError naming every setting that differs."""
    changed = changed_settings(before, now)
    if not changed:
        return
    paths = {mark: name for name, mark in WEIGHTS.items()}
    differences = "; ".join(
        f"the weights of {paths[name]} are others than before (their fingerprint was {before.get(name)}, "
        f"is now {now.get(name)})"
        if name in paths
        else f"{name} was {before.get(name)!r}, is now {now.get(name)!r}"
        for name in changed
    )
    raise ValueError(
        f"{path} was begun with other settings: {differences}. Use the same settings, another file, or --fresh to "
        "start over"
    )


class AnswerFile:
    """An answer file, claimed by this process when it is opened, so that nothing of another run is ever touched.

    `begin` resumes (torn lines are dropped, finished questions are in `done`) or, with `fresh`, starts over.
    """

    def __init__(self, path: Path):
        """Open and claim. Raises ValueError where another run has the file."""
        self.path, self.session = path, 0
        self.done: dict[int, Record] = {}
        self.file = jsonl.open_locked(path)

    def begin(self, settings: Record, origin: Record, fresh: bool = False) -> None:
        """Compare with the settings on disk and add this session to them. ValueError where they differ."""
        place = meta_path(self.path)
        if fresh:
            self.file.truncate(0)
            place.unlink(missing_ok=True)
        jsonl.recover(self.path)
        begun = self.path.stat().st_size > 0
        if begun and not place.is_file():
            raise ValueError(
                f"{self.path} holds answers but {place.name}, which says how they were made, is missing; use another "
                "file, or --fresh to start over"
            )
        meta: Record = read_meta(place) if begun else {"schema": SCHEMA, "settings": settings, "sessions": []}
        check_same_settings(self.path, meta["settings"], json.loads(json.dumps(settings)))
        meta["sessions"].append(origin)
        write_whole(place, json.dumps(meta, indent=1) + "\n")
        self.session = len(meta["sessions"]) - 1
        for entry in read_entries(self.path):
            self._note(entry)

    def _note(self, entry: Record) -> None:
        if entry["question_id"] in self.done:
            raise ValueError(
                f"{self.path}: question {entry['question_id']} is answered twice; expected once. Remove "
                "one of its lines"
            )
        self.done[entry["question_id"]] = entry

    def add(self, entry: Record) -> None:
        """Append one line, on disk when this returns."""
        self._note(entry)
        jsonl.append(self.file, entry, self.path)

    def close(self) -> None:
        """Release the file; an empty one without settings, of a run that never began, is removed."""
        if self.path.exists() and not self.path.stat().st_size and not meta_path(self.path).exists():
            self.path.unlink()
        self.file.close()


# --- reading ---------------------------------------------------------------------------------------------------------


class Answers(NamedTuple):
    """A run as read back: its method's name, its settings, the sessions that wrote it, one record per question."""

    name: str
    settings: Record
    sessions: list[Record]
    records: list[Record]


def read_meta(path: Path) -> Record:
    """The settings and sessions of an answer file. Raises ValueError naming the file and what is wrong with it."""
    remedy = "restore the file, or answer again with `python -m eval ... --fresh`"
    try:
        meta = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); {remedy}") from error
    if not isinstance(meta, dict) or not isinstance(meta.get("settings"), dict):
        raise ValueError(f"{path}: expected a JSON object with `settings`; {remedy}")
    sessions = meta.get("sessions")
    if not isinstance(sessions, list) or not all(isinstance(session, dict) for session in sessions):
        raise ValueError(f"{path}: expected `sessions`, a list of JSON objects; {remedy}")
    if type(meta.get("schema")) is not int or not 1 <= meta["schema"] <= SCHEMA:
        newer = "update this program, or " if _is_count(meta.get("schema"), SCHEMA + 1) else ""
        raise ValueError(
            f"{path}: schema is {shown(meta.get('schema'))}; expected 1 to {SCHEMA}, which this version reads; "
            f"{newer}{remedy}"
        )
    return meta


def check_meta(meta: Record, path: Path) -> None:
    """Raise ValueError where a report could not read the settings or a session, naming the key."""

    def check(values: Record, types: dict[str, Any], where: str) -> None:
        for key, kind in types.items():
            value = values.get(key)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{path}: {where}.{key} is {value}; restore the file, or answer again")
            if key not in values or not isinstance(value, kind) or (value is True and kind is int):
                raise ValueError(f"{path}: {where}.{key} is {shown(value)}; restore the file, or answer again")

    numbers = {name: int | float for name in SAMPLING if name in meta["settings"]}
    check(meta["settings"], SETTINGS | numbers, "settings")
    if not meta["sessions"]:
        raise ValueError(f"{path}: sessions is empty; restore the file, or answer again")
    for number, session in enumerate(meta["sessions"]):
        check(session, SESSION, f"sessions[{number}]")
        for part, types in SESSION_PARTS.items():
            check(session[part], types, f"sessions[{number}].{part}")


def check_entry(entry: Any) -> None:
    """Raise ValueError saying what is wrong with one line's value."""

    def expect(holds: bool, what: str) -> None:
        if not holds:
            raise ValueError(f"expected {what}")

    expect(isinstance(entry, dict), "a JSON object")
    expect(_is_count(entry.get("question_id"), least=-(2**53)), "`question_id`, a number")
    expect(isinstance(entry.get("category"), str), "`category`, a text")
    for name in ("reference", "error"):
        expect(name in entry and isinstance(entry[name], str | None), f"`{name}`, a text or null")
    expect(isinstance(entry.get("passed"), bool | None), "`passed`, true or false, where it is there")
    turns, choices = entry.get("measured"), entry.get("choices")
    expect(isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns), "`measured`, a list of objects")
    expect(isinstance(choices, list) and bool(choices) and isinstance(choices[0], dict), "`choices`, a list of objects")
    texts = choices[0].get("turns")
    expect(
        isinstance(texts, list) and len(texts) == len(turns) and all(isinstance(text, str) for text in texts),
        "`choices[0].turns`, a text per measured turn",
    )
    expect(bool(turns) or entry.get("error") is not None, "a turn, or an `error`")
    for number, turn in enumerate(turns):
        problem = _turn_problem(turn)
        expect(not problem, f"in turn {number} {problem}")


def _turn_problem(turn: Record) -> str:
    """What is wrong with one measured turn; empty when nothing is."""
    tokens, steps = turn.get("tokens"), turn.get("steps")
    if not isinstance(tokens, list) or not all(_is_count(token) for token in tokens):
        return "`tokens`, a list of token ids"
    if not _is_number(turn.get("seconds")) or not isinstance(turn.get("stop_reason"), str):
        return "`seconds`, a number, and `stop_reason`, a text"
    if not isinstance(steps, dict):
        return "`steps`, an object of lists"
    kinds = dict.fromkeys(COUNTS, _is_count) | dict.fromkeys(("expected", *PHASES), _is_number)
    for name, kind in kinds.items():
        if not isinstance(steps.get(name), list) or not all(kind(value) for value in steps[name]):
            return f"`steps.{name}`, a list of numbers from 0 up"
    if len({len(steps[name]) for name in kinds}) > 1:
        return "lists of one length in `steps`"
    if any(a > e for a, e in zip(steps["accepted"], steps["emitted"], strict=True)):
        return "no step with more tokens accepted than emitted"
    if sum(steps["emitted"]) > len(tokens):
        return f"at most the {len(tokens)} tokens of the answer in `steps.emitted`"
    return ""


def _is_count(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= 2**53


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1e15


def read_entries(path: Path) -> list[Record]:
    """The finished lines of an answer file. Raises ValueError naming file, line and what is wrong."""
    found = []
    for number, entry in jsonl.lines(path):
        try:
            check_entry(entry)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}; remove the line to have it answered again") from error
        found.append(entry)
    return found


def answer_files(paths: list[str]) -> list[Path]:
    """The answer files behind file and directory names."""
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not inside or not all(place.is_file() for place in inside):
            raise ValueError(f"{str(path)!r}: no answer file there; expected an answer file or a directory of them")
        found += inside
    return found


def read(paths: list[str]) -> list[Answers]:
    """Every run in the named files, shards put together. Raises ValueError for a missing shard or a damaged file."""
    groups: dict[tuple[Path, int], dict[int, Path]] = {}
    for place in dict.fromkeys(answer_files(paths)):
        shard = SHARD.search(place.stem)
        base = place.with_name(SHARD.sub("", place.stem))
        rank, world = (int(shard[1]), int(shard[2])) if shard else (0, 1)
        groups.setdefault((base, world), {})[rank] = place
    return [read_run(base.name, shards, world) for (base, world), shards in groups.items()]


def read_run(name: str, shards: dict[int, Path], world: int) -> Answers:
    """One run from the files of its ranks."""
    missing = sorted(set(range(world)) - set(shards))
    if missing:
        raise ValueError(f"{name}: shard {missing[0]} of {world} is missing; pass the files of all ranks")
    metas = []
    for place in shards.values():
        if not meta_path(place).is_file():
            raise ValueError(
                f"{place}: {meta_path(place).name} is missing beside it; expected the settings it was "
                "made with. Answer again with `python -m eval`"
            )
        metas.append(read_meta(meta_path(place)))
    settings = metas[0]["settings"]
    for place, meta in zip(shards.values(), metas, strict=True):
        check_meta(meta, meta_path(place))
        check_same_settings(place, settings, meta["settings"])
    records = sorted(
        (entry for place in shards.values() for entry in read_entries(place)), key=lambda entry: entry["question_id"]
    )
    ids = [entry["question_id"] for entry in records]
    if len(set(ids)) < len(ids):
        raise ValueError(f"{name}: a question is answered twice in its shards; expected every question once")
    return Answers(settings["method"], settings, [s for meta in metas for s in meta["sessions"]], records)
