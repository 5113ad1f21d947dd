"""Answer files: FastChat's MT-Bench schema, one line per question, with the measurements beside the text.

    F.jsonl            {question_id, answer_id, model_id, choices: [{index, turns, idxs, new_tokens, wall_time}],
                        tstamp, category, reference, error, session, measured: [one dict per turn]}
    F.meta.json        the settings that make the answers what they are, and the origin of every session that wrote
    F.rank0-of-2.jsonl the first of two shards; `read` puts the shards of a run together again

`choices[0].idxs`, `new_tokens`, `wall_time` are what EAGLE's scripts read: the index of a turn's last step (one less
than its steps), its tokens, its seconds.
`measured[t]` holds the tokens and, per decoding step, lists: accepted, emitted, expected, nodes, truncated, and the
seconds of each phase.
"""

import json
import re
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

from eval import jsonl as storage
from eval.questions.benchmarks import Question
from eval.runs.methods import Turn

SCHEMA = 1
PHASES = ("draft", "score", "verify", "commit")
SHARD = re.compile(r"\.rank(\d+)-of-(\d+)$")

Record = dict[str, Any]


def shard_path(path: Path, rank: int, world: int) -> Path:
    return path if world == 1 else path.with_name(f"{path.stem}.rank{rank}-of-{world}{path.suffix}")


def meta_path(path: Path) -> Path:
    return path.with_name(f"{path.name.removesuffix('.jsonl')}.meta.json")


def rounded(seconds: float) -> float:
    return round(seconds, 6)


def measured(turn: Turn) -> Record:
    """A turn's measurements as JSON: lists over steps, seconds to the microsecond."""
    steps = turn.steps
    return {
        "prompt_tokens": turn.prompt_tokens,
        "tokens": turn.tokens,
        "seconds": rounded(turn.seconds),
        "prefill_seconds": None if turn.prefill_seconds is None else rounded(turn.prefill_seconds),
        "stop_reason": turn.stop_reason,
        "steps": {
            "accepted": [int(step.accepted) for step in steps],
            "emitted": [int(step.emitted) for step in steps],
            "expected": [round(float(step.expected_accepted), 6) for step in steps],
            "nodes": [int(step.nodes) for step in steps],
            "truncated": [int(step.truncated) for step in steps],
            **{phase: [rounded(step.seconds.get(phase, 0.0)) for step in steps] for phase in PHASES},
        },
    }


def record(
    question: Question, model_id: str, texts: list[str], turns: list[Turn], error: str | None, session: int
) -> Record:
    """One line of an answer file. A question that failed keeps the turns it finished, and its error."""
    return {
        "question_id": question.question_id,
        "answer_id": uuid.uuid4().hex[:22],
        "model_id": model_id,
        "choices": [
            {
                "index": 0,
                "turns": texts,
                "idxs": [len(turn.steps) - 1 for turn in turns],
                "new_tokens": [len(turn.tokens) for turn in turns],
                "wall_time": [rounded(turn.seconds) for turn in turns],
            }
        ],
        "tstamp": time.time(),
        "category": question.category,
        "reference": question.reference,
        "error": error,
        "session": session,
        "measured": [measured(turn) for turn in turns],
    }


def check_same_settings(path: Path, before: Record, now: Record) -> None:
    names = sorted((before.keys() | now.keys()) - {"questions"})  # a file may move: the hash says what is in it
    changed = [name for name in names if before.get(name) != now.get(name)]
    if changed:
        differences = "; ".join(f"{name} was {before.get(name)!r}, is now {now.get(name)!r}" for name in changed)
        raise ValueError(
            f"{path} was begun with other settings: {differences}. Use the same settings, another file, or --fresh to "
            "start over"
        )


class AnswerFile:
    """An answer file open for appending. Opening it resumes: torn lines are dropped, finished questions are known."""

    def __init__(self, path: Path, settings: Record, origin: Record):
        self.path, self.done = path, {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(path, "ab")
        try:
            storage.lock(self.file, path)
            self.session = self._claim(settings, origin)
        except ValueError:
            self.file.close()
            raise
        for entry in storage.lines(path):
            self._note(entry)

    def _claim(self, settings: Record, origin: Record) -> int:
        """Compare with the settings on disk and add this session to them; its number."""
        storage.recover(self.path)
        place, begun = meta_path(self.path), self.path.stat().st_size > 0
        if begun and not place.is_file():
            raise ValueError(
                f"{self.path} holds answers but {place.name} is missing, so nobody can say how they were "
                "made; use another file, or --fresh to start over"
            )
        meta = (
            json.loads(place.read_text(encoding="utf-8"))
            if begun
            else {"schema": SCHEMA, "settings": settings, "sessions": []}
        )
        check_same_settings(self.path, meta["settings"], json.loads(json.dumps(settings)))
        meta["sessions"].append(origin)
        storage.write_whole(place, json.dumps(meta, indent=1) + "\n")
        return len(meta["sessions"]) - 1

    def _note(self, entry: Record) -> None:
        if entry["question_id"] in self.done:
            raise ValueError(
                f"{self.path}: question {entry['question_id']} is answered twice; expected once. Remove "
                "one of its lines"
            )
        self.done[entry["question_id"]] = entry

    def add(self, entry: Record) -> None:
        self._note(entry)
        storage.append(self.file, entry)

    def close(self) -> None:
        self.file.close()


def remove(path: Path) -> None:
    """Forget an answer file and its settings."""
    for place in (path, meta_path(path)):
        place.unlink(missing_ok=True)


class Answers(NamedTuple):
    """A run as read back: its method's name, its settings, the sessions that wrote it, one record per question."""

    name: str
    settings: Record
    sessions: list[Record]
    records: list[Record]


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
    """Every run in the named files, shards put together. Raises ValueError for a shard that is missing."""
    groups: dict[tuple[Path, int], dict[int, Path]] = {}
    for place in dict.fromkeys(answer_files(paths)):
        shard = SHARD.search(place.stem)
        base = place.with_name(SHARD.sub("", place.stem))
        rank, world = (int(shard[1]), int(shard[2])) if shard else (0, 1)
        groups.setdefault((base, world), {})[rank] = place
    return [read_run(base.name, shards, world) for (base, world), shards in groups.items()]


def read_run(name: str, shards: dict[int, Path], world: int) -> Answers:
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
        metas.append(json.loads(meta_path(place).read_text(encoding="utf-8")))
    for place, meta in zip(shards.values(), metas, strict=True):
        check_same_settings(place, metas[0]["settings"], meta["settings"])
    records = sorted(
        (entry for place in shards.values() for entry in storage.lines(place)), key=lambda entry: entry["question_id"]
    )
    ids = [entry["question_id"] for entry in records]
    if len(set(ids)) < len(ids):
        raise ValueError(f"{name}: a question is answered twice in its shards; expected every question once")
    return Answers(
        metas[0]["settings"]["method"], metas[0]["settings"], [s for m in metas for s in m["sessions"]], records
    )
