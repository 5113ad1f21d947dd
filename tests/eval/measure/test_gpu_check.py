"""`python -m eval.measure.gpu_check`: a failing part is recorded and stops no other; the dry run walks real parts."""

import json
import os
import sys
import time

import pytest
import torch

from eval.measure import gpu_check, gpu_parts
from eval.measure.gpu_check import Part
from eval.provenance import REPOSITORY

FINDINGS = {"summary": "two rows", "skipped": None, "rows": [{"a": 1}, {"a": 2}], "notes": ["n"], "checks": []}
WRITE = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text({!r}); "
PROGRAMS = {  # part -> what it runs
    "raises": WRITE.format(json.dumps(FINDINGS)) + "raise RuntimeError('device-side assert')",
    "crashes": "import os; os.abort()",
    "hangs": WRITE.format(json.dumps(FINDINGS)) + "import subprocess; subprocess.run(['sleep', '60'])",
    "misses": WRITE.format(json.dumps({**FINDINGS, "checks": [{"what": "7 ms", "found": "9 ms", "met": False}]})),
    "skips": WRITE.format(json.dumps({**FINDINGS, "skipped": "pytest is not installed"})),
    "works": WRITE.format(json.dumps({**FINDINGS, "checks": [{"what": "bar", "found": "x", "met": None}]})),
}


def run(tmp_path, names, seconds=60.0, whole=120.0):
    parts = [Part(name, name, 2.0 if name == "hangs" else seconds) for name in names]
    command = lambda part, file: [sys.executable, "-I", "-c", PROGRAMS[part.name], str(file)]
    gpu_check.run_parts(parts, command, tmp_path, dry=False, seconds=whole)
    written = json.loads((tmp_path / "results.json").read_text())
    return {record["part"]: record for record in written["parts"]}


def test_a_part_that_fails_does_not_stop_the_others(tmp_path):
    records = run(tmp_path, PROGRAMS)
    statuses = {name: record["status"] for name, record in records.items()}
    assert statuses == {
        "raises": "failed",
        "crashes": "failed",
        "hangs": "time-out",
        "misses": "missed",
        "skips": "skipped",
        "works": "ok",
    }
    assert records["raises"]["rows"] == FINDINGS["rows"]  # what was measured before
    assert "exit code 1: RuntimeError: device-side assert; before that: two rows" in records["raises"]["summary"]
    assert "exit code -6" in records["crashes"]["summary"]
    assert records["hangs"]["rows"] == FINDINGS["rows"] and "stopped after 2 s" in records["hangs"]["summary"]
    assert records["hangs"]["seconds"] < 20
    assert records["skips"]["summary"] == "pytest is not installed"
    text = (tmp_path / "summary.txt").read_text()
    assert "MISSED: 7 ms: 9 ms" in text and "not judged: bar: x" in text and "note: n" in text
    assert "6 parts in" in text and "1 ok, 1 missed, 1 skipped, 3 failed or timed out" in text
    assert "device-side assert" in (tmp_path / "log.txt").read_text()
    assert sorted(os.listdir(tmp_path)) == ["log.txt", "results.json", "summary.txt"]


def test_the_whole_has_a_limit_too(tmp_path):
    began = time.monotonic()
    records = run(tmp_path, ["hangs", "works"], whole=1.0)
    assert [record["status"] for record in records.values()] == ["time-out", "time-out"]
    assert time.monotonic() - began < 20


def test_a_program_that_does_not_start_is_a_failed_part(tmp_path):
    part = Part("absent", "absent", 5.0)
    records = gpu_check.run_parts([part], lambda part, file: ["/nowhere/python"], tmp_path, dry=False)
    assert records[0]["status"] == "failed" and "/nowhere/python" in records[0]["summary"]


def test_the_limits_fit_into_nine_minutes():
    assert sum(part.seconds for part in gpu_check.PARTS) <= gpu_check.WHOLE_SECONDS < 540


def test_a_dry_run_of_one_part(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_check.main([str(tmp_path / "out"), "--dry-run", "--parts", "exactness"]) == 0
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    (part,) = written["parts"]
    assert written["dry_run"] and part["status"] == "ok" and part["checks"][0]["met"]
    assert any(row["tree"] == "recorded hybrid" for row in part["rows"])
    assert max(row["stop"] for row in part["rows"]) <= 1e-5
    assert "no bar of speed is judged" in capsys.readouterr().out


def test_the_demo_pair_end_to_end(tmp_path, monkeypatch, threads):
    monkeypatch.setattr(gpu_parts, "pair_names", lambda: ["demo"])
    gpu_parts.run_here("pairs", tmp_path / "pairs.json", tmp_path, dry=True)
    found = gpu_check.read_findings(tmp_path / "pairs.json")
    rows = [(row["pair"], row["method"], row["temperature"]) for row in found["rows"]]
    assert rows == [("demo", name, t) for t in (0.0, 1.0) for name in ("plain", "topk+token", "hybrid+hsd")]
    assert [check["met"] for check in found["checks"]] == [True]
    assert "demo: 1 of 1 problems" in found["checks"][0]["found"]


def test_a_verifier_that_differs_on_the_device_misses_the_bar(tmp_path, monkeypatch, threads):
    """The comparison can fail: the device's distribution is that of another verifier."""
    law = gpu_parts.hsd.stopping_law
    wrong = lambda tree, probs, name: law(tree, probs, "token" if probs.dtype == torch.float32 else name)
    monkeypatch.setattr(gpu_parts.hsd, "stopping_law", wrong)
    gpu_parts.run_here("exactness", tmp_path / "exactness.json", tmp_path, dry=True)
    assert gpu_check.read_findings(tmp_path / "exactness.json")["checks"][0]["met"] is False


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_the_dry_run_is_named(tmp_path, capsys):
    assert gpu_check.main([str(tmp_path)]) == 2
    assert "run with --dry-run" in capsys.readouterr().err


def test_no_module_that_a_gpu_machine_may_lack_is_imported():
    """fschat, datasets and flash-attn are not on every GPU machine; imports inside functions are allowed."""
    import ast

    for name in ("gpu_check", "gpu_parts", "step_time", "verification", "batch"):
        body = ast.parse((REPOSITORY / "eval" / "speed" / f"{name}.py").read_text()).body
        found = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
        found |= {node.module for node in body if isinstance(node, ast.ImportFrom)}
        assert not {module.split(".")[0] for module in found} & {"fastchat", "datasets", "flash_attn", "pytest"}
