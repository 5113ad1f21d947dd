"""scripts/gpu_check.sh: every call parses, a part that fails or hangs is noted and stops no other."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eval.measure import batch, numerics, step_time, verification

ROOT = Path(__file__).parents[3]
PARSERS = {
    f"eval.measure.{module.__name__.rpartition('.')[2]}": module.build_parser()
    for module in (step_time, verification, numerics, batch)
}


def check(tmp_path, program, *arguments, **more):
    """Run the script with a stand-in for the interpreter; exit code, summary lines."""
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\n{program}\n")
    python.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(python), "CALLS": str(tmp_path / "calls"), **more}
    command = ["bash", str(ROOT / "scripts" / "gpu_check.sh"), str(tmp_path / "out"), *arguments]
    code = subprocess.run(command, env=environment, capture_output=True).returncode
    return code, (tmp_path / "out" / "summary.txt").read_text().splitlines()


@pytest.mark.parametrize("dry", [[], ["--dry"]])
def test_every_call_parses(tmp_path, dry):
    write = "import os, sys; open(os.environ['CALLS'], 'a').write(' '.join(sys.argv[2:]) + chr(10))"
    code, summary = check(tmp_path, write, *dry)
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    assert code == 0 and len(summary) == len(calls) >= 10
    assert all(": ok, " in line for line in summary)
    assert {module for module, *_ in calls} == {"pytest", *PARSERS}
    for module, *flags in calls:
        if module in PARSERS:
            PARSERS[module].parse_args(flags)
        else:
            assert all((ROOT / flag).is_file() for flag in flags if flag.endswith(".py"))


def test_a_part_that_fails_stops_no_other(tmp_path):
    program = "import sys; print('seen'); sys.exit('verification' in sys.argv[2])"
    code, summary = check(tmp_path, program, "verify", "eager")
    assert code == 1
    assert summary[0].startswith("verify: FAILED (1)") and summary[1].startswith("eager: ok")
    assert (tmp_path / "out" / "verify.txt").read_text() == "seen\n"


def test_a_part_that_hangs_is_stopped_and_so_is_the_whole(tmp_path):
    code, summary = check(tmp_path, "import time; time.sleep(60)", "verify", "eager", WHOLE="1")
    assert code == 1
    assert [line.split(", ")[0] for line in summary] == ["verify: stopped after 1 s", "eager: stopped after 1 s"]
