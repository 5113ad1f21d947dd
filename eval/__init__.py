"""Benchmarks and numbers: which questions, which methods, what was measured and how sure it is.

    python -m eval --help                         run one method, or several alternating question by question
    python -m eval.report --help                 tables, plots and one HTML page from the answer files
    python -m eval.questions.downloads --help     get the question files and check their checksums
    python -m eval.measure.budget --help            the draft-token budget of this machine and pair
    python -m eval.measure.table --help             E[accepted] of trees and verifiers at the same states

Dependencies point one way: this package uses `eagle`, never the other way round.
"""

from eagle import threads  # noqa: F401  before torch is imported
