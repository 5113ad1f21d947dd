"""How OpenMP's threads wait is set before torch is imported, and only where nobody has set it."""

import os
import subprocess
import sys

import pytest

from eagle.threads import WAITING

SHOW = "import {}; import os; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"


@pytest.mark.parametrize(
    ("given", "first", "expected"),
    [
        ({}, "eagle.threads", "1000 None"),
        ({}, "eval", "1000 None"),
        ({"OMP_WAIT_POLICY": "active"}, "eagle.threads", "None active"),
        ({"GOMP_SPINCOUNT": "7"}, "eagle.threads", "7 None"),
        ({}, "torch, eagle.threads", "None None"),
    ],
)
def test_only_where_it_has_an_effect_and_nobody_else_has_set_it(given, first, expected):
    inherited = {name: value for name, value in os.environ.items() if name not in WAITING}
    command = [sys.executable, "-c", SHOW.format(first)]
    done = subprocess.run(command, env={**inherited, **given}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
