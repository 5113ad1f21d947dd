"""What each draft tree accepts with one draft head: `calibration.json` beside the head's weights.

    calibration = Calibration.load(head / "calibration.json", target_fingerprint, head_fingerprint, "ragged")
    calibration.table(0.6)                        the table of the nearest calibrated temperature

    {"format": 4, "target": FINGERPRINT, "head": FINGERPRINT, "prompts": SHA256, "seed": 0, "tables": [
        {"temperature": 0.5, "states": 64,
         "trees": [{"tree": "hybrid", "nodes": 16, "depth": 6, "expected": 1.39, "standard_error": 0.11}, ...],
         "overlaps": [{"power": 0.8, "overlap": 0.46, "loss": -0.25}, ...],
         "fit": {"beta": 0.7, "sharpness": 0.8}, "levels": "ragged"}, ...]}

`expected` is the mean of the exact E[accepted] over the states, hybrid trees being grown with `fit` and `levels`. It
says nothing of time, so it is valid on every machine whose hybrid trees have such levels: "ragged" on a CPU, "equal" on
a GPU. A file has tables of both; one of format 3 names no levels and has those of a CPU.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from eagle.autotune.candidates import Candidate, Fit, is_greedy, nearest
from eagle.digests import sha256
from eagle.files import read_json, write_json
from eagle.trees import LEVELS, TREES

FORMAT = 4
READ = (3, FORMAT)  # 1: of hybrid trees with equal levels; 2: without sharpness; 3: without levels
NAME = "calibration.json"


@dataclass(frozen=True)
class Expected:
    """E[accepted] of one tree: mean over states, and its standard error over prompts (0 where there is one prompt)."""

    tree: str
    nodes: int
    depth: int
    expected: float
    standard_error: float

    @property
    def candidate(self) -> Candidate:
        return Candidate(self.tree, self.nodes, self.depth)


@dataclass(frozen=True)
class Overlap:
    """Means over tokens, q being taken to `power`: sum of min(p, q), and the loss of `eagle.autotune.sharpness`."""

    power: float
    overlap: float
    loss: float


@dataclass(frozen=True)
class Table:
    """What was measured at one temperature, and what hybrid trees are to know of the head."""

    temperature: float
    states: int
    trees: tuple[Expected, ...]
    overlaps: tuple[Overlap, ...] = ()
    fit: Fit = Fit()
    levels: str = LEVELS[0]


@dataclass(frozen=True)
class Calibration:
    """The tables of one pair. `prompts`: SHA-256 of the token ids they were measured on."""

    target: str | None
    head: str | None
    prompts: str
    seed: int
    tables: tuple[Table, ...]

    def table(self, temperature: float) -> Table:
        """The table of the nearest temperature (`eagle.autotune.candidates.nearest`)."""
        tables = {table.temperature: table for table in self.tables}
        return tables[nearest(temperature, tables)]

    def most_accepted(self, greedy: bool) -> dict[Candidate, float]:
        """Each candidate's largest E[accepted] over the greedy temperatures, or over the others."""
        found: dict[Candidate, float] = {}
        for row in (row for table in self.tables if is_greedy(table.temperature) == greedy for row in table.trees):
            found[row.candidate] = max(row.expected, found.get(row.candidate, row.expected))
        return found

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        tables = [{**asdict(table), "fit": table.fit._asdict()} for table in self.tables]
        write_json(path, {"format": FORMAT, **asdict(self), "tables": tables})

    @classmethod
    def load(cls, path: Path, target: str | None, head: str | None, levels: str) -> "Calibration":
        """Read the file of the models with these fingerprints: the tables of trees with these levels.

        Raises ValueError where it cannot be read, belongs to other weights, or has no such tables.
        """
        found = cls._parse(path)
        for name, wanted, got in (("target", target, found.target), ("head", head, found.head)):
            if wanted != got:
                raise ValueError(
                    f"{path}: it belongs to a {name} with fingerprint {got}, and this one's is {wanted}; make it anew "
                    "with python -m eagle.calibrate"
                )
        tables = tuple(table for table in found.tables if table.levels == levels)
        if not tables:
            raise ValueError(
                f"{path}: its hybrid trees have {found.tables[0].levels} levels, and this device's have {levels} ones; "
                "make it anew with python -m eagle.calibrate"
            )
        return replace(found, tables=tables)

    @classmethod
    def _parse(cls, path: Path) -> "Calibration":
        value = read_json(path)
        if value.get("format") not in READ:
            raise ValueError(
                f"{path}: format {value.get('format')!r}, expected {FORMAT}; run python -m eagle.calibrate"
            )
        try:
            tables = tuple(_table(table) for table in value["tables"])
            found = cls(value["target"], value["head"], value["prompts"], int(value["seed"]), tables)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: not a calibration ({type(error).__name__}: {error}); run python -m eagle.calibrate"
            ) from error
        if not tables:
            raise ValueError(f"{path}: it has no tables; run python -m eagle.calibrate")
        return found


# What values of a file may be. A value out of range would not fail: every tree would look useless, or none.
RANGES = {
    "temperature": (0, 1e3, float),
    "states": (1, 2**31, int),
    "nodes": (1, 2**16, int),
    "depth": (1, 2**16, int),
    "expected": (0, 2**16, float),
    "standard_error": (0, 2**16, float),
    "power": (0, 1e3, float),
    "overlap": (0, 1 + 1e-6, float),
    "loss": (-1e6, 1e6, float),
    "beta": (0, 1, float),
    "sharpness": (1e-3, 1e3, float),
}


def _table(values: dict[str, Any]) -> Table:
    """One entry of `tables`. Raises ValueError, KeyError or TypeError for what `calibrate` does not write."""
    trees, overlaps = ([_checked(row) for row in values[name]] for name in ("trees", "overlaps"))
    for row in trees:
        if row["tree"] not in TREES:
            raise ValueError(f"tree is {row['tree']!r}, expected one of {', '.join(TREES)}")
    levels = values.get("levels", LEVELS[0])
    if levels not in LEVELS:
        raise ValueError(f"levels is {levels!r}, expected one of {', '.join(LEVELS)}")
    return Table(
        **_checked({name: values[name] for name in ("temperature", "states")}),
        trees=tuple(Expected(**row) for row in trees),
        overlaps=tuple(Overlap(**row) for row in overlaps),
        fit=Fit(**_checked(values["fit"])),
        levels=levels,
    )


def _checked(row: dict[str, Any]) -> dict[str, Any]:
    """The row, if its numbers are in range. Raises ValueError naming the first that is not."""
    for name, value in row.items():
        if name in RANGES:
            least, most, kind = RANGES[name]
            number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
            if not number or not least <= value <= most:
                whole = "a whole number" if kind is int else "a number"
                raise ValueError(f"{name} is {value!r}, expected {whole} from {least:g} to {most:g}")
    return row


def digest_of(prompts: Sequence[Sequence[int]]) -> str:
    """SHA-256 of prompts as token ids."""
    return sha256(json.dumps([list(prompt) for prompt in prompts]))
