"""`tree="auto"`: the candidate with most tokens per second for a temperature and a batch size, fixed before decoding.

The choice is a function of a calibration and of step times that were measured before the generation begins, on prompts
and with generators of their own. It depends on nothing that the generation draws, so the generation is the lossless one
of the chosen tree: a seed and the recorded plan give the same tokens again.

E[accepted] comes from `calibration.json` beside the head (python -m eagle.calibrate). Where there is none, or one of
other weights or of trees that this device does not grow (with a warning), the nearest of `TEMPERATURES` is measured
briefly when it is first needed and kept in the user's cache directory, as step times are. Measuring takes a minute at
most; what is not known then is the device's entry of `SHIPPED`.
"""

import math
import time
import warnings
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eagle.autotune.acceptance import STATES_PER_ANSWER, measure, tables_of
from eagle.autotune.calibration import NAME, Calibration, Table, digest_of
from eagle.autotune.candidates import AUTO, Candidate, Fit, kinds_of, nearest
from eagle.autotune.choice import Point, choose, points
from eagle.autotune.machine import cache_directory, machine
from eagle.autotune.prompts import bundled_prompts
from eagle.autotune.step_cost import OutOfTime, StepCosts
from eagle.checkpoints.fingerprint import local_directory, weights_fingerprint
from eagle.digests import sha256
from eagle.engine.distributions import is_greedy
from eagle.nn import native
from eagle.trees import LEVELS, greedy_tree, native_level
from hsd import native as decisions

TEMPERATURES = (0.0, 0.5, 0.7, 1.0)
BRIEF_STATES = 16  # per temperature, where there is no calibration
LONGEST = 60.0  # seconds of measuring
SHIPPED = {"cpu": Candidate("hybrid", 8, 4), "cuda": Candidate("hybrid", 60, 7)}  # by device, where nothing is measured


class Patience:
    """A progress bar over what is measured, which raises OutOfTime after so many seconds in all."""

    def __init__(self, seconds: float = LONGEST):
        self.end = time.monotonic() + seconds

    def __call__(self, items: Iterable[Any], what: str = "measuring what drafts are accepted") -> Iterator[Any]:
        """The items, while there is time. The bar appears on terminals."""
        for item in tqdm(items, desc=what, leave=False, disable=None):
            if time.monotonic() >= self.end:
                raise OutOfTime
            yield item


class AutoTree:
    """What is known of one model: its calibration and step times, read and measured when first asked for.

    target, drafter    paths or hub ids of the weights; None: measurements are kept in memory only
    levels             of hybrid trees on the model's device (`eagle.trees.TreeSettings`)
    settled            nothing more is measured: what is not known is taken from `SHIPPED`
    """

    def __init__(self, target: str | None = None, drafter: str | None = None, levels: str = LEVELS[0]):
        self.target, self.drafter, self.levels = target, drafter, levels
        self.settled = False
        self._costs: StepCosts | None = None

    def choose(self, model: Any, temperature: float, batch: int = 1, tree: str = AUTO) -> Point:
        """The fastest candidate, plain decoding where no tree is faster. `tree`: "auto", or the kind it is to be.

        What is not known yet is measured within a minute; else it is the shipped candidate, with figures of NaN.

        Raises ValueError as `points` does.
        """
        try:
            return choose(self.points(model, temperature, batch, tree, Patience(0 if self.settled else LONGEST)))
        except OutOfTime:
            if not self.settled:
                self._settle()
            return Point(shipped(model.device.type, tree, temperature), math.nan, math.nan, math.nan)

    def points(
        self, model: Any, temperature: float, batch: int = 1, tree: str = AUTO, patience: Patience | None = None
    ) -> list[Point]:
        """What `choose` chooses from, plain decoding first.

        What is not known yet is measured, for as long as it takes or until `patience` raises OutOfTime.

        Raises ValueError for a model without a drafter, and for a kind that has no candidates or is not calibrated.
        """
        if model.drafter is None:
            raise ValueError(f"tree={tree!r} needs a drafter: load with ea_model_path or draft_model_path")
        kinds, greedy = kinds_of(tree, temperature), is_greedy(temperature)
        patience = Patience(math.inf) if patience is None else patience
        table, costs = self._table(model, temperature, patience), self._step_costs(model)
        if not any(row.tree in kinds for row in table.trees):
            raise ValueError(f"tree={tree!r} is not in the head's calibration: run python -m eagle.calibrate again")
        times = costs.known(batch, greedy)
        if times is None:
            accepted = {} if self.calibration is None else self.calibration.most_accepted(greedy)
            times = costs.measure(model, batch, greedy, accepted, patience)
        return points(table, times, kinds)

    def observe(self, batch: int, temperature: float, candidate: Candidate, milliseconds: float) -> None:
        """What a step of a generation with the chosen tree really took."""
        if self._costs is not None:
            self._costs.observe(batch, is_greedy(temperature), candidate, milliseconds)

    def fit(self, temperature: float, brief: bool = False) -> Fit:
        """What the calibration found for hybrid trees, the default where there is none.

        brief    what was measured in place of a calibration counts too
        """
        if self.calibration is not None:
            return self.calibration.table(temperature).fit
        known = self._brief if brief else {}
        return known[nearest(temperature, known)].fit if known else Fit()

    def prepare(self, model: Any) -> None:
        """Measure everything that generations of one row can need, so that none of them has to: a minute at most."""
        patience = Patience()
        try:
            for temperature in TEMPERATURES:
                self.points(model, temperature, patience=patience)
        except OutOfTime:
            self._settle()

    def _settle(self) -> None:
        self.settled = True
        warnings.warn(
            f"tree='auto': measuring takes more than {LONGEST:g} s here, so a tree of usual size is taken; "
            "python -m eagle.calibrate TARGET HEAD measures what drafts are accepted, tree='none' decodes plainly",
            stacklevel=3,
        )

    @cached_property
    def fingerprints(self) -> tuple[str | None, str | None]:
        """Of the target's and the drafter's weights; None where the model was not loaded by its path."""
        return weights_fingerprint(self.target), weights_fingerprint(self.drafter)

    # --- what is accepted ----------------------------------------------------------------------------------------

    @cached_property
    def calibration(self) -> Calibration | None:
        """The one beside the drafter. Warns of one that cannot be used."""
        folder = local_directory(self.drafter)
        if folder is None or not (folder / NAME).is_file():
            return None
        try:
            return Calibration.load(folder / NAME, *self.fingerprints, self.levels)
        except ValueError as error:
            warnings.warn(f"{error}; until then E[accepted] is measured briefly", stacklevel=2)
            return None

    @cached_property
    def _brief_path(self) -> Path | None:
        if None in self.fingerprints:
            return None
        known_by = (*self.fingerprints, self.levels, BRIEF_STATES, STATES_PER_ANSWER)
        digest = sha256("/".join(map(str, known_by)))[:16]
        return cache_directory() / f"calibration-{digest}.json"

    @cached_property
    def _brief(self) -> dict[float, Table]:
        """By temperature, what was measured in place of a calibration, by this process or an earlier one."""
        if self._brief_path is None or not self._brief_path.is_file():
            return {}
        try:
            tables = Calibration.load(self._brief_path, *self.fingerprints, self.levels).tables
        except ValueError:  # damaged: it can be measured again
            return {}
        return {table.temperature: table for table in tables}

    def _table(self, model: Any, temperature: float, patience: Patience) -> Table:
        if self.calibration is not None:
            return self.calibration.table(temperature)
        temperature = nearest(temperature, TEMPERATURES)
        if temperature not in self._brief:
            self._measure_briefly(model, temperature, patience)
        return self._brief[temperature]

    def _measure_briefly(self, model: Any, temperature: float, patience: Patience) -> None:
        prompts = bundled_prompts(model.tokenizer)
        found = measure(model, prompts, temperature, BRIEF_STATES, shown=patience, levels=[self.levels])
        (self._brief[temperature],) = tables_of([found], [self.levels])
        if self._brief_path is not None:
            kept = Calibration(*self.fingerprints, digest_of(prompts), 0, tuple(self._brief.values()))
            try:
                kept.save(self._brief_path)
            except OSError as error:
                warnings.warn(f"the brief calibration is not kept: {error}", stacklevel=2)

    # --- what it costs -------------------------------------------------------------------------------------------

    def _step_costs(self, model: Any) -> StepCosts:
        if self._costs is None:
            target, drafter = self.fingerprints
            key = {
                "target": target,
                "drafter": drafter,
                "dtype": str(model.target.model.dtype),
                "attention": model.target.attention,
                "decoder": model.target.decoder_because or native.unavailable() or native.build().stem,
                "drafts": f"{native_level.LIBRARY.version}, {decisions.LIBRARY.version}",
                **machine(model.device),
            }
            self._costs = StepCosts(None if None in self.fingerprints else key)
        return self._costs


def shipped(device: str, tree: str, temperature: float) -> Candidate:
    """The candidate where nothing is measured; `tree`: "auto", or the kind it is to be."""
    kind, nodes, depth = SHIPPED.get(device, SHIPPED["cuda"])
    kind = kind if tree == AUTO else tree
    return Candidate(
        greedy_tree(kind) if is_greedy(temperature) else kind, depth + 1 if kind == "chain" else nodes, depth
    )
