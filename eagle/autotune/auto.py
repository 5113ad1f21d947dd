"""`tree="auto"`: the candidate with most tokens per second for a temperature and a batch size, fixed before decoding.

The choice is a function of a calibration and of step times that were measured before the generation begins, on prompts
and with generators of their own. It depends on nothing that the generation draws, so the generation is the lossless one
of the chosen tree: a seed and the recorded plan give the same tokens again.

E[accepted] comes from `calibration.json` beside the head (python -m eagle.calibrate). Where there is none, or one of
other weights (with a warning), the nearest of `TEMPERATURES` is measured briefly when it is first needed and kept in
the user's cache directory, as step times are.
"""

import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

from eagle.autotune.acceptance import measure, tables_of
from eagle.autotune.calibration import NAME, Calibration, Table, digest_of
from eagle.autotune.candidates import AUTO, Candidate, Fit, kinds_of, nearest
from eagle.autotune.choice import Point, choose, points
from eagle.autotune.machine import cache_directory, machine
from eagle.autotune.prompts import bundled_prompts
from eagle.autotune.step_cost import StepCosts
from eagle.checkpoints.fingerprint import local_directory, weights_fingerprint
from eagle.digests import sha256
from eagle.engine.distributions import is_greedy
from eagle.nn import native

TEMPERATURES = (0.0, 0.5, 0.7, 1.0)
BRIEF_STATES = 16  # per temperature, where there is no calibration


class AutoTree:
    """What is known of one model: its calibration and step times, read and measured when first asked for.

    target, drafter    paths or hub ids of the weights; None: measurements are kept in memory only
    """

    def __init__(self, target: str | None = None, drafter: str | None = None):
        self.target, self.drafter = target, drafter
        self._costs: StepCosts | None = None

    def choose(self, model: Any, temperature: float, batch: int = 1, tree: str = AUTO) -> Point:
        """The fastest candidate, plain decoding where no tree is faster. `tree`: "auto", or the kind it is to be.

        Raises ValueError as `points` does.
        """
        return choose(self.points(model, temperature, batch, tree))

    def points(self, model: Any, temperature: float, batch: int = 1, tree: str = AUTO) -> list[Point]:
        """What `choose` chooses from, plain decoding first.

        What is not known yet is measured.

        Raises ValueError for a model without a drafter, and for a kind that has no candidates or is not calibrated.
        """
        if model.drafter is None:
            raise ValueError(f"tree={tree!r} needs a drafter: load with ea_model_path or draft_model_path")
        kinds, greedy = kinds_of(tree, temperature), is_greedy(temperature)
        table, costs = self._table(model, temperature), self._step_costs(model)
        if not any(row.tree in kinds for row in table.trees):
            raise ValueError(f"tree={tree!r} is not in the head's calibration: run python -m eagle.calibrate again")
        times = costs.known(batch, greedy)
        if times is None:
            accepted = {} if self.calibration is None else self.calibration.most_accepted(greedy)
            times = costs.measure(model, batch, greedy, accepted)
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
        """Measure everything that generations of one row can need, so that none of them has to."""
        for temperature in TEMPERATURES:
            self.points(model, temperature)

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
            return Calibration.load(folder / NAME, *self.fingerprints)
        except ValueError as error:
            warnings.warn(f"{error}; until then E[accepted] is measured briefly", stacklevel=2)
            return None

    @cached_property
    def _brief_path(self) -> Path | None:
        if None in self.fingerprints:
            return None
        digest = sha256("/".join(map(str, self.fingerprints)))[:16]
        return cache_directory() / f"calibration-{digest}.json"

    @cached_property
    def _brief(self) -> dict[float, Table]:
        """By temperature, what was measured in place of a calibration, by this process or an earlier one."""
        if self._brief_path is None or not self._brief_path.is_file():
            return {}
        try:
            tables = Calibration.load(self._brief_path, *self.fingerprints).tables
        except ValueError:  # damaged: it can be measured again
            return {}
        return {table.temperature: table for table in tables}

    def _table(self, model: Any, temperature: float) -> Table:
        if self.calibration is not None:
            return self.calibration.table(temperature)
        temperature = nearest(temperature, TEMPERATURES)
        if temperature not in self._brief:
            self._measure_briefly(model, temperature)
        return self._brief[temperature]

    def _measure_briefly(self, model: Any, temperature: float) -> None:
        prompts = bundled_prompts(model.tokenizer)
        (self._brief[temperature],) = tables_of([measure(model, prompts, temperature, BRIEF_STATES)])
        if self._brief_path is not None:
            found = Calibration(*self.fingerprints, digest_of(prompts), 0, tuple(self._brief.values()))
            try:
                found.save(self._brief_path)
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
                "decoder": model.target.decoder_because or native.unavailable() or "native",
                **machine(model.device),
            }
            self._costs = StepCosts(None if None in self.fingerprints else key)
        return self._costs
