"""From what a file of answers was sampled: settings, digests of the data, a fingerprint of the target.

OUT.jsonl.settings.json     written before the first answer; `complete` is set at the end
"""

import json
from pathlib import Path
from typing import Any

from eagle import jsonl
from eagle.checkpoints.fingerprint import fingerprint
from eagle.digests import sha256_of_file
from eagle.files import parse_json, write_json

TEXT_FILES = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def target_digests(target: str) -> dict[str, str]:
    """The fingerprint of a model directory's weights and config, and digests of what decides its texts.

    A hub id stands for itself. Raises ValueError where a directory holds no weights.
    """
    directory = Path(target)
    if not directory.is_dir():
        return {"hub": target}
    texts = {name: sha256_of_file(directory / name) for name in TEXT_FILES if (directory / name).is_file()}
    return {"weights": fingerprint(directory), **texts}


def differences(was: dict, now: dict) -> list[str]:
    """One text per entry that differs."""
    keys = [*now, *(key for key in was if key not in now)]
    return [f"{key}: was {was.get(key)!r}, is {now.get(key)!r}" for key in keys if was.get(key) != now.get(key)]


class Sidecar:
    """The settings file beside an output."""

    def __init__(self, output: str | Path, settings: dict) -> None:
        """`settings` describe the run that is about to write `output`; nothing is read or written yet."""
        self.output = Path(output)
        self.path = Path(f"{output}.settings.json")
        self.settings = settings

    def begin(self) -> bool:
        """Whether the output is complete; else the sidecar is written and sampling may begin or continue.

        Raises ValueError where what is there was sampled with other settings, from other data or another target, or
        where nothing says so.
        """
        if not self.path.exists():
            if self.output.exists():
                raise ValueError(
                    f"{self.output} exists without {self.path.name}, so what it was sampled from is not known; remove "
                    "it or choose another output"
                )
            write_json(self.path, {**self.settings, "complete": False})
            return False
        try:
            found = parse_json(self.path.read_bytes())
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self.path}: cannot be read ({error}); remove it and {self.output} to sample again"
            ) from error
        if not isinstance(found, dict):
            raise ValueError(f"{self.path}: not a JSON object; remove it and {self.output} to sample again")
        complete = bool(found.pop("complete", False))
        changed = differences(found, json.loads(json.dumps(self.settings)))
        if changed:
            raise ValueError(
                f"{self.output} was sampled with other settings, data or target ({'; '.join(changed)}); remove it and "
                f"{self.path.name}, or choose another output"
            )
        return complete and self.output.exists()

    def finish(self) -> None:
        """Mark the output complete."""
        write_json(self.path, {**self.settings, "complete": True})


class Journal:
    """Finished items of a run, one JSON line each, appended as they end: {"number": i, "value": ...}."""

    def __init__(self, path: str | Path) -> None:
        """Read what is there; a last line cut short is dropped."""
        self.path = Path(path)
        self.values: dict[int, Any] = {}
        if self.path.exists():
            jsonl.recover(self.path)
            for number, row in jsonl.lines(self.path):
                if not isinstance(row, dict) or not row.keys() >= {"number", "value"}:
                    raise ValueError(f"{self.path}, line {number}: no number and value in it; remove the line")
                self.values[row["number"]] = row["value"]

    def append(self, number: int, value: object) -> None:
        """Write one item. Raises OSError naming the file where it cannot be written."""
        self.values[number] = value
        with jsonl.open_locked(self.path) as file:
            jsonl.append(file, {"number": number, "value": value}, self.path)
