"""A run that nothing interrupted, to compare with."""

import pytest

from tests.eval.helpers import evaluate


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder of its answers."""
    output = tmp_path_factory.mktemp("unbroken")
    assert evaluate(output) == 0
    return output
