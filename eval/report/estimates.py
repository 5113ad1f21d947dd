"""Numbers with 95 % intervals: the percentile bootstrap over questions, and Wilson's interval of a share.

Everything is a statistic of sums over questions (a ratio of sums, a difference of ratios). The bootstrap resamples
*questions* with replacement, because the steps of one answer are not independent, with a fixed seed: equal data give
equal intervals, and methods that answered the same questions are resampled together.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 2000
SEED = 20250101


class Estimate(NamedTuple):
    """A number with its 95 % interval; `low` and `high` are None for a single question."""

    value: float
    low: float | None
    high: float | None


@lru_cache(maxsize=4)
def resample_weights(questions: int) -> np.ndarray:
    """How often each question appears in each resample: Int[RESAMPLES, questions], the same on every call."""
    generator = np.random.default_rng(SEED)
    return generator.multinomial(questions, np.full(questions, 1 / questions), size=RESAMPLES)


def bootstrap(statistic: Callable[..., Any], *columns: np.ndarray) -> Estimate | None:
    """95 % interval of a statistic of the columns' sums.

    statistic   called with one number, or one array of resampled sums, per column
    columns     Float[questions] each, in the same order of questions

    None where the statistic cannot be computed (no questions, no steps).
    """
    if not len(columns[0]):
        return None
    weights = resample_weights(len(columns[0]))
    with np.errstate(divide="ignore", invalid="ignore"):
        value = statistic(*(values.sum() for values in columns))
        resampled = statistic(*(weights @ values for values in columns))
    if not np.isfinite(value):
        return None
    if len(columns[0]) == 1:
        return Estimate(float(value), None, None)
    low, high = np.quantile(resampled[np.isfinite(resampled)], [0.025, 0.975])
    return Estimate(float(value), float(low), float(high))


def ratio(above: Any, below: Any) -> Any:
    """Division that gives nan or inf, instead of an error, where the divisor is 0."""
    return np.divide(above, below)


def wilson(successes: int, count: int) -> Estimate | None:
    """A share with Wilson's 95 % interval, which stays sensible at 0 and at 1; None for a count of 0."""
    if not count:
        return None
    z, share = 1.959964, successes / count
    center = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z * ((share * (1 - share) + z * z / (4 * count)) / count) ** 0.5 / (1 + z * z / count)
    return Estimate(share, max(0.0, center - reach), min(1.0, center + reach))
