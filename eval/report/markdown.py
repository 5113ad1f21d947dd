"""Tables of strings as Markdown, and numbers with intervals as strings."""

from collections.abc import Callable
from typing import Any, NamedTuple

from eagle.command import markdown_table


class Table(NamedTuple):
    """A titled table of strings; `note` says how to read it."""

    title: str
    note: str
    header: list[str]
    rows: list[list[str]]

    def text(self) -> str:
        """Title, table and note as Markdown."""
        return f"{self.title}\n\n{markdown_table(self.header, self.rows)}\n\n{self.note}"


def interval(estimate: Any, write: Callable[[float], str]) -> str:
    """`4.57 [4.41, 4.73]`, without brackets where there is no interval, a dash where there is nothing to measure."""
    if estimate is None:
        return "–"
    value, low, high = estimate
    return write(value) + ("" if low is None else f" [{write(low)}, {write(high)}]")


def number(estimate: Any, digits: int = 2, sign: str = "") -> str:
    """A plain number: `4.57 [4.41, 4.73]`; `sign` "+" writes the sign of positive ones too."""
    return interval(estimate, lambda value: f"{value:{sign}.{digits}f}")


def times(estimate: Any) -> str:
    """A factor: `1.61x [1.55x, 1.67x]`."""
    return interval(estimate, lambda value: f"{value:.2f}x")


def percent(estimate: Any, sign: str = "") -> str:
    """A share: `31% [29%, 34%]`."""
    return interval(estimate, lambda value: f"{value:{sign}.0%}")
