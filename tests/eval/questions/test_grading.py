"""Phrasings of GSM8K answers and the number each commits to; the rules are in `eval/questions/grading.py`."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.questions import downloads
from eval.questions.grading import final_number, is_correct, reference_number

PHRASINGS = [
    # where an answer commits
    ("She has 3.\n#### 18", 18),
    ("####18", 18),
    ("#### 18 apples", 18),
    ("#### -3", -3),
    ("#### $70,000.00", 70000),
    ("#### Step 2\nso it is 9 in all", 9),
    ("The answer is: **12** apples", 12),
    ("So the answer is $5.50.", 5.5),
    ("Answer: 18 (for 2 days)", 18),
    ("**Final Answer**\n\n7 is left of 9. Final answer: 2", 2),
    ("Answer:\n18", 18),
    ("The final answer is that she has 18 of the 20 eggs.", 18),
    ("The answer is not 3 but 4. The answer is 4.", 4),
    ("the correct answer is\n\n\\[ \\boxed{42} \\]\nwhich took 3 steps", 42),
    ("Thus \\boxed{42}. This took 3 steps.", 42),
    ("\\boxed{\\text{18 dollars}} in 3 days", 18),
    ("\\boxed{x = 5} after 2 tries", 5),
    ("\\boxed{\\$1{,}234.50}, 2 cents less", 1234.5),
    ("The answer is $\\boxed{24}$.", 24),
    ("first 3, then 4, so 7.", 7),
    ("The answer is 6.\n\nQuestion: There are 9 cars. The answer is 9.", 6),
    ("The answer is the sum of these 3 numbers, 3 + 4 + 5 = 12", 12),
    ("no idea", None),
    ("", None),
    # equations
    ("The answer is 10 + 8 = 18", 18),
    ("The answer is 10 + 8 = 18, which is 2 times 9.", 18),
    ("The answer is 18 = 20 - 2", 18),
    ("The answer is 18, because 20 - 2 = 18 and 17 + 1 = 18.", 18),
    ("The answer is (10 + 8) * 2 = 36.", 36),
    ("The answer is 3 apples + 4 oranges = 7 fruit", 7),
    ("The answer is 3 \\times 6 = 18", 18),
    ("Answer: 3 x 6 = 18", 18),
    ("The answer is 2 times 9 = 18 in total", 18),
    ("So 5 are left. The answer is 10 + 8.", 8),
    ("\\boxed{48 \\div 2 = 24}", 24),
    # digits
    ("\\boxed{1{,}234}", 1234),
    ("The answer is 1,234,567.", 1234567),
    ("The answer is 1,00,000 rupees", 100000),
    ("The answer is 1\u202f234 m", 1234),
    ("The answer is 1\\,234", 1234),
    ("The answer is .5", 0.5),
    ("The answer is 0.50 dollars.", 0.5),
    ("The answer is 1.5e3", 1500),
    ("The answer is 2.5 million people", 2500000),
    ("She counts 1,2,3", 3),
    ("It pays Rs.18", 18),
    # signs
    ("The answer is \u22125", -5),
    ("The answer is -$5", -5),
    ("The answer is $-5.25", -5.25),
    ("The answer is +7", 7),
    ("It was built in 2010-2015", 2015),
    ("pages 12\u201318", 18),
    ("x = 20 -\n18", 18),
    ("that is -\\frac{1}{2}", -0.5),
    # fractions
    ("The answer is 1/2", 0.5),
    ("The answer is 1 1/2 cups", 1.5),
    ("\\boxed{\\frac{3}{4}}", 0.75),
    ("\\boxed{2\\dfrac{1}{2}}", 2.5),
    ("so it is 3½ hours", 3.5),
    ("The answer is 48/2 = 24", 24),
    # no numbers, and what is ignored
    ("The answer is 20%", 20),
    ("The answer is 18cm.", 18),
    ("18 eggs on the 3rd day", 18),
    ("18 minutes, until 10:45", 18),
    ("18 days, until 1/2/2020", 18),
    ("18, by version 1.2.3", 18),
    ("18, which is x2", 18),
    ("The answer is _18_", 18),
    ("The answer is `18`", 18),
    ("The answer is 0/0", "nan"),
]


@pytest.mark.parametrize(("text", "number"), PHRASINGS)
def test_final_number(text, number):
    found = final_number(text)
    assert str(found) == "nan" if number == "nan" else found == number


@given(st.integers(-(10**9), 10**9), st.sampled_from(["{}", "{:,}", "${:,}", "{:.2f}", "**{}**", "\\boxed{{{}}}"]))
def test_a_number_written_is_the_number_read(value, style):
    for sentence in ("The answer is {}.", "#### {}", "2 + 2 is 4 and so it is {}"):
        assert final_number(sentence.format(style.format(value))) == value


@given(st.text(alphabet="0123456789,.-+/=$%(){}\\ \n#answeris:xboxed½−", max_size=60))
def test_any_text_gives_a_number_or_none(text):
    assert final_number(text) is None or isinstance(final_number(text), float)


def test_correctness():
    assert is_correct("#### 18.0", "so\n#### 18")
    assert is_correct("It is 0.5.", "#### 1/2")
    assert not is_correct("It is 1.", "#### 1/2")
    assert not is_correct("#### 19", "#### 18")
    assert not is_correct("The answer is 0/0", "#### 18")
    assert not is_correct("", "#### 18")
    for bad in ("eighteen", "#### eighteen", "#### 10 + 8", "#### 0/0"):
        with pytest.raises(ValueError, match="expected `#### n`"):
            reference_number(bad)


def test_the_references_of_gsm8k():
    """Every reference solution is right, as it stands, as a sentence and with its number boxed."""
    try:
        lines = downloads.read_or_download("gsm8k/test.jsonl").decode().splitlines()
    except downloads.MissingDataError:
        pytest.skip("GSM8K's test file is not here")
    for line in lines:
        reference = json.loads(line)["answer"]
        number = reference.rpartition("####")[2].strip()
        assert reference_number(reference) == float(re.sub(",", "", number))
        worked = reference.rpartition("####")[0]
        for text in (
            reference,
            f"{worked}The answer is ${number}.",
            f"{worked}\\[\\boxed{{{number}}}\\]\nDone in 2 steps",
        ):
            assert is_correct(text, reference)


SAME = [
    ("\\frac{1}{2}", "\\dfrac12"),
    ("\\frac{1}{2}", "0.5"),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})"),
    ("\\text{Evelyn}", "Evelyn"),
    ("\\text{(C)}", "C"),
    ("p - q", "p-q"),
    ("10", "10\\text{ cm}"),
    ("10", "10\\%"),
    ("90^\\circ", "90"),
    ("x \\in [-2,7]", "[-2,7]"),
    ("5", "x = 5."),
    ("\\$18.90", "18.9"),
    ("11,\\! 111", "11111"),
    ("\\sqrt{2}", "\\sqrt2"),
]
OTHER = [("\\frac{1}{2}", "\\frac{1}{3}"), ("2", "2x"), ("(1,2)", "(2,1)"), ("-5", "5"), ("\\sqrt{8}", "2\\sqrt{2}")]


@pytest.mark.parametrize(("reference", "answer"), SAME)
def test_expressions_of_one_meaning(reference, answer):
    boxed = f"\\boxed{{{reference}}}"
    assert is_correct(f"First \\boxed{{0}}, so it is $\\boxed{{{answer}}}$.", boxed)
    assert is_correct(f"We see that the answer is: ${answer}$", boxed)
    assert is_correct(boxed, boxed)


@pytest.mark.parametrize(("reference", "answer"), OTHER)
def test_other_expressions(reference, answer):
    assert not is_correct(f"\\boxed{{{answer}}}", f"\\boxed{{{reference}}}")
    assert not is_correct("I do not know.", f"\\boxed{{{reference}}}")


@given(st.text(alphabet="0123456789,.-/=$%(){}\\ \n^answeris:xboxedfracsqrt", max_size=60))
def test_any_text_is_an_expression_or_none(text):
    assert is_correct(text, "\\boxed{7}") in (True, False)
    assert is_correct(f"\\boxed{{{text}}}", "\\boxed{\\frac{1}{2}}") in (True, False)
