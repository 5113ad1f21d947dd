r"""Is a GSM8K answer right? The last number it commits to, compared with the reference.

What counts as committing, in this order: `#### n`, `the answer is n`, `\boxed{n}`, else the last number in the text.
A few-shot model may go on and invent further questions: text from a new `Question:` line on is not its answer.
"""

import re
from typing import TypeGuard

NUMBER = r"-?\$?\d[\d,]*(?:\.\d+)?"
COMMITMENTS = [
    re.compile(rf"####\s*({NUMBER})"),
    re.compile(rf"answer is:?\s*\**\s*({NUMBER})", re.IGNORECASE),
    re.compile(rf"\\boxed\{{\s*\\?({NUMBER})"),
    re.compile(rf"({NUMBER})"),
]


def to_float(number: str) -> float:
    """The value of a written number: `$1,234.50` is 1234.5."""
    return float(re.sub(r"[,$\s]", "", number))


def final_number(text: str) -> float | None:
    """The number an answer ends on, or None when it names none."""
    answer = re.split(r"\n\s*Question:", text)[0]
    for pattern in COMMITMENTS:
        found = pattern.findall(answer)
        if found:
            return to_float(found[-1])
    return None


def has_number(reference: str | None) -> TypeGuard[str]:
    """Whether a reference answer is one of GSM8K's, with `#### n` at its end: answers to others are not judged."""
    return reference is not None and "####" in reference


def reference_number(reference: str) -> float:
    """The number behind `####`. Raises ValueError when a reference answer has none."""
    found = COMMITMENTS[0].findall(reference)
    if not found:
        raise ValueError(f"reference answer {reference[-60:]!r}: expected `#### n` at its end")
    return to_float(found[-1])


def is_correct(text: str, reference: str) -> bool:
    """Exact match of the final numbers, within float rounding (`18`, `18.0` and `$18` are the same answer)."""
    number = final_number(text)
    return number is not None and abs(number - reference_number(reference)) < 1e-6
