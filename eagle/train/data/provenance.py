"""From what a file of answers was sampled: settings, digests of the data, a fingerprint of the target.

OUT.jsonl.settings.json     written before the first answer; `complete` is set at the end
"""

import hashlib
import json
from pathlib import Path

from eagle.checkpoints.fingerprint import fingerprint
from eagle.files import naming, parse_json, write_json, write_whole

TEXT_FILES = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def file_digest(path: str | Path) -> str:
    """SHA-256 of a whole file. Raises ValueError naming a file that cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{str(path)!r}: cannot be read ({error.strerror})") from error


def target_digests(target: str) -> dict[str, str]:
    """The fingerprint of a model directory's weights and config, and digests of what decides its texts.

    A hub id stands for itself. Raises ValueError where a directory holds no weights.
    """
    directory = Path(target)
    if not directory.is_dir():
        return {"hub": target}
    texts = {name: file_digest(directory / name) for name in TEXT_FILES if (directory / name).is_file()}
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
        self.values: dict[int, object] = {}
        if self.path.exists():
            content = self.path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if whole != content:
                write_whole(self.path, whole)
            for number, line in enumerate(whole.splitlines(), 1):
                try:
                    row = parse_json(line)
                    self.values[row["number"]] = row["value"]
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(f"{self.path}, line {number}: cannot be read; remove the line") from error

    def append(self, number: int, value: object) -> None:
        """Write one item. Raises OSError naming the file where it cannot be written."""
        self.values[number] = value
        with naming(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"number": number, "value": value}, ensure_ascii=False) + "\n")
