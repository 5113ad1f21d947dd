r"""Is a GSM8K or a MATH answer right? What it commits to, compared with the reference.

A reference with `#### n` (GSM8K's) asks for a number, one that is `\boxed{...}` (MATH's) for an expression.

Where it commits, the last place of the first kind that is there: `#### n`; `the answer is n`, `Answer: n`; `\boxed{n}`;
else the last number of the text. A few-shot model may go on and invent further questions: text from a new `Question:`
line on is not its answer.

One grammar reads all numbers, answers' and references':

    sign        + or -, the Unicode minus too, directly in front; directly behind a digit, letter or bracket it is an
                operation or a dash: 2010-2015 are two numbers
    digits      1234  1,234  1,00,000  1{,}234  1.5  .5  1.5e6; a list where a comma stands between other groups: 1,2
    fraction    1/2  1 1/2  \frac{1}{2}  ½
    scale       hundred, thousand, million, billion, trillion behind it
    ignored     currency, percent sign, unit: $18  18%  18cm
    no number   words (eighteen), ordinals (3rd), times and ratios (10:30), dates (1/2/2020), versions (1.2.3), x2

Where two readings are possible, behind a commitment (at most three words behind it, on its line or the next):
    18 (for 2 days)          the first number
    10 + 8 = 18, twice 9     of an equation the last side that is a number alone; it ends at a comma, semicolon, bracket
                             or second number, and with the sentence
    10 + 8;  not 18          nothing: an earlier place counts, or the next kind

Expressions are the last \boxed{...} of an answer, else what follows its last "answer is". They are equal as numbers, or
letter by letter once signs of size and spacing, units, percent and degree signs, and `x =` in front are taken out.
Nothing is computed: 2\sqrt{2} is not \sqrt{8}, which counts some right answers as wrong.
"""

import math
import re
import unicodedata
from collections.abc import Iterator
from typing import Any, TypeGuard

SCALE = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
PLAIN_SIGNS = str.maketrans({**dict.fromkeys("\u2212\u2013\ufe63\uff0d", "-"), "⁄": "/", "×": "*", "·": "*", "≈": "="})
VULGAR = "[\u00bc-\u00be\u2150-\u215e]"
THIN = "[\u00a0\u2007\u2009\u202f]"
REWRITES: list[tuple[str, Any]] = [  # LaTeX, Markdown and typography -> plain text; in this order
    (r"\{,\}|,\\!", ","),
    (rf"(?<=\d)(?:{THIN}|\\[,;: ])(?=\d{{3}}(?!\d))", ","),
    (r"\\([$%])", r"\1"),
    (r"(\d?)\s?\\[dt]?frac\s*\{?([\d.]+)\}?\s*\{?([\d.]+)\}?", lambda m: f"{m[1]}{' ' if m[1] else ''}{m[2]}/{m[3]}"),
    (rf"(\d?)\s?({VULGAR})", lambda m: f"{m[1]}{' ' if m[1] else ''}{unicodedata.normalize('NFKC', m[2])}"),
    (r"\\(?:times|cdot|ast)\b", "*"),
    (r"\\div\b", "÷"),
    (r"\\(?:approx|[Rr]ightarrow|implies)\b", "="),
    (r"\\(?:text\w*|math\w*|mbox|left|right|displaystyle)\b|\\[!()\[\]]|`", ""),
    (r"\\[,;: ]", " "),
    (r"(?<!\d)\*\*|\*\*(?!\d)|(?<!\w)_+(?=\w)|(?<=[^\W_])_+(?!\w)", ""),
]
DIGITS = r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d+)"
NUMBER = rf"""
    (?:(?<![-\w.)\]}}%])(?P<sign>[-+]))?  (?:[$€£¥₹]\s?)?  (?P<inner>(?<=[$€£¥₹])[-+])?
    (?<!\w)(?<!\d[.:/])                                 # no part of a word, version, time or date
    (?:(?P<ones>\d+)[ ](?=\d+/\d))?                     # of 1 1/2
    (?P<value>(?:{DIGITS}(?:\.\d+)?|(?<!\.)\.\d+)(?:[eE][-+]?\d+)?)
    (?:/(?P<below>{DIGITS}(?:\.\d+)?))?
    (?!\d|[.:/]\d|(?:st|nd|rd|th)\b)
    (?:[ ](?P<scale>{"|".join(SCALE)})\b)?"""
NUMBERS = re.compile(NUMBER, re.VERBOSE)
TOKENS = re.compile(
    rf"""(?P<number>{NUMBER})
    | (?P<equals>=)
    | (?P<operation>(?:[-+*÷/^]|\b(?:x|times|plus|minus|divided\ by|multiplied\ by)\b)(?=[\s($€£{{]*[-+]?[\d.]))
    | (?P<end>[,;(\[]|[.!?](?=\s|$)|\n)""",
    re.VERBOSE,
)
HASHES = re.compile(r"####\s*(?=[^\w\n]*\d)")
ANSWER = re.compile(
    r"\banswer\b(?:[^\n.:=\d]{0,40}?\b(?:is|equals)\b\s*:?|\s*[:=])(?!\s*not\b)\s*(?=(?:\w+\W+){0,3}?[^\w\n]*\d)", re.I
)
BOXED = re.compile(r"\\f?boxed\s*\{")
STATED = re.compile(r"\banswer\b(?:\s+is\b)?\s*:?\s*([^\n]+)", re.IGNORECASE)
EXPRESSION: list[tuple[str, str]] = [  # LaTeX of one meaning -> one spelling; in this order
    (r"(?<=\d)\s*\\(?:text|mathrm|mbox)\s*\{[^{}]*\}(?:\^\{?\d\}?)?", ""),
    (r"\\(?:text\w*|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", r"\1"),
    (r"\\[dt]frac", r"\\frac"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\sqrt\s*(\w)", r"\\sqrt{\1}"),
    (r"\^\s*\{?\\circ\}?|\\(?:left|right|displaystyle)(?![a-z])|\\?[$%]|\\[!,;: ]|\s", ""),
    (r"^[a-zA-Z](?:=|\\in)(?=.)|\.$", ""),
    (r"^\((\w)\)$", r"\1"),
]


def plain(text: str) -> str:
    """The text with LaTeX, Markdown and typographic signs written out plainly."""
    text = text.translate(PLAIN_SIGNS)
    for pattern, replacement in REWRITES:
        text = re.sub(pattern, replacement, text)
    return text.translate(PLAIN_SIGNS)


def value_of(number: re.Match) -> float:
    """The value of a match of NUMBER; NaN for a division by zero."""
    below = float((number["below"] or "1").replace(",", ""))
    amount = float(number["value"].replace(",", "")) / below if below else math.nan
    negative = "-" in (number["sign"], number["inner"])
    return (-1 if negative else 1) * (float(number["ones"] or 0) + amount) * SCALE.get(number["scale"], 1)


def committed(text: str) -> float | None:
    """The number that a statement commits to, by the rules above; None where there is none."""
    sides: list[list[float]] = [[]]
    operations = [0]
    last = ""
    for token in TOKENS.finditer(text):
        kind = str(token.lastgroup)
        if kind == "number":
            if last == "number":
                break
            sides[-1].append(value_of(token))
        elif kind == "equals":
            sides.append([])
            operations.append(0)
        elif kind == "operation":
            operations[-1] += 1
        elif last == "number" or (any(sides) and token["end"] not in "(["):
            break
        last = kind
    alone = [side[0] for side, count in zip(sides, operations, strict=True) if len(side) == 1 and not count]
    return alone[-1] if alone else None


def inside_braces(text: str) -> str:
    """What stands before the brace that closes the one in front of `text`."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "{") - (letter == "}")
        if not depth:
            return text[:place]
    return text


def commitments(answer: str) -> Iterator[list[str]]:
    """The statements of each kind, in the order in which kinds count."""
    for pattern in (HASHES, ANSWER):
        yield [answer[found.end() :] for found in pattern.finditer(answer)]
    yield [inside_braces(answer[found.end() :]) for found in BOXED.finditer(answer)]


def final_number(text: str) -> float | None:
    """The number an answer ends on, or None when it names none."""
    answer = plain(re.split(r"\n\s*Question:", text)[0])
    for statements in commitments(answer):
        for statement in reversed(statements):
            number = committed(statement)
            if number is not None:
                return number
    found = list(NUMBERS.finditer(answer))
    return value_of(found[-1]) if found else None


def has_number(reference: str | None) -> TypeGuard[str]:
    """Whether a reference answer is one of GSM8K's, with `#### n` at its end: answers to others are not judged."""
    return reference is not None and "####" in reference


def reference_number(reference: str) -> float:
    """The number behind `####`. Raises ValueError when a reference answer has none."""
    number = committed(plain(reference.rpartition("####")[2].strip())) if has_number(reference) else None
    if number is None or not math.isfinite(number):
        raise ValueError(f"reference answer {reference[-60:]!r}: expected `#### n` at its end")
    return number


def is_expression(reference: str | None) -> TypeGuard[str]:
    r"""Whether a reference answer is one of MATH's, `\boxed{...}`."""
    return reference is not None and reference.startswith("\\boxed{")


def can_be_marked(reference: str | None) -> TypeGuard[str]:
    """Whether answers to a question with this reference are judged."""
    return has_number(reference) or is_expression(reference)


def boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}`."""
    found = list(BOXED.finditer(text))
    return inside_braces(text[found[-1].end() :]) if found else None


def final_expression(text: str) -> str | None:
    """The expression an answer ends on, or None when it names none."""
    stated = STATED.findall(text)
    return boxed(text) or (stated[-1] if stated else None)


def same_expression(first: str, second: str) -> bool:
    """Equal as numbers or, in one spelling, letter by letter."""
    for pattern, replacement in EXPRESSION:
        first, second = (re.sub(pattern, replacement, text.strip()) for text in (first, second))
    numbers = [NUMBERS.fullmatch(plain(text)) for text in (first, second)]
    if all(numbers):
        return same_number(*(value_of(number) for number in numbers if number))
    return first == second


def same_number(first: float, second: float) -> bool:
    """Equal within float rounding."""
    return math.isclose(first, second, rel_tol=1e-9, abs_tol=1e-6)


def is_correct(text: str, reference: str) -> bool:
    """Exact match of the final numbers (`18`, `18.0` and `$18` are the same answer) or expressions."""
    if is_expression(reference):
        expression = final_expression(text)
        return expression is not None and same_expression(expression, boxed(reference) or "")
    number = final_number(text)
    return number is not None and same_number(number, reference_number(reference))
