"""Prompts that share a long run of words with an evaluation file are not trained on."""

import gzip
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from eagle.files import parse_json

RUN = 13  # words in a row that make an overlap
WORD = re.compile(r"\w+")


def word_runs(text: str) -> Iterator[tuple[str, ...]]:
    """Every run of 13 words, lower case, punctuation aside."""
    words = WORD.findall(text.lower())
    for start in range(len(words) - RUN + 1):
        yield tuple(words[start : start + RUN])


def texts_in(value) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from texts_in(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from texts_in(item)


def read_texts(path: str | Path) -> list[str]:
    """The texts of a file: every string of JSON or JSONL (.gz too), else the whole content.

    Raises ValueError naming a file that is not there or not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"excluded file {str(path)!r}: no such file")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = content.decode("utf-8")
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"excluded file {str(path)!r}: cannot be read as text ({error})") from error
    try:
        return list(texts_in([parse_json(line) for line in text.splitlines() if line.strip()]))
    except ValueError:
        return [text]


class Overlap:
    """The runs of words of some files. False positives are impossible: runs are compared word by word."""

    def __init__(self, paths: Iterable[str | Path]) -> None:
        """Read the files; raises ValueError naming one that cannot be read."""
        self.runs = {run for path in paths for text in read_texts(path) for run in word_runs(text)}

    def shares(self, text: str) -> bool:
        """Whether `text` has 13 words in a row that one of the files has."""
        return bool(self.runs) and any(run in self.runs for run in word_runs(text))
