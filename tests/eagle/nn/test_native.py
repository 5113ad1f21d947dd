"""Native products equal float64 ones for every number of rows, on every instruction set that this machine has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eagle.nn import native
from eagle.nn.native import calls

MISSING = native.unavailable()
needs_native = pytest.mark.skipif(MISSING is not None, reason=f"no native code: {MISSING}")
INSTRUCTIONS = [] if MISSING else [name for name, number in native.INSTRUCTIONS.items() if number <= native.best()]
ROWS = [*range(1, 18), 33, 64]
SIZES = [
    (1, 1),
    (7, 33),
    (16, 32),
    (48, 96),
    (65, 63),
    (130, 31),
    (100, 577),
    (33, 3001),
]  # 8 rows of the last are too wide for the nearest cache


@pytest.fixture(params=INSTRUCTIONS or ["none"])
def instructions(request, monkeypatch):
    """One instruction set after the other."""
    library = native.load()._replace(instructions=native.INSTRUCTIONS[request.param])
    monkeypatch.setattr(native, "load", lambda: library)
    return request.param


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@needs_native
@pytest.mark.parametrize("columns", [1, 7, 16, 1023, 1025, 5000])
@pytest.mark.parametrize("dtype", native.DTYPES, ids=str)
def test_totals_equal_float64(instructions, threads, dtype, columns):
    for rows in (0, 1, 5):
        logits = 20 * random(rows, columns, dtype=dtype) - 60  # all below zero; of bfloat16 several are the largest
        log_sum, likeliest = calls.totals(logits)
        torch.testing.assert_close(log_sum.double(), logits.double().logsumexp(-1), rtol=1e-6, atol=1e-6)
        expected = [row.index(max(row)) for row in logits.tolist()]
        assert likeliest.tolist() == expected


@needs_native
def test_totals_of_what_is_not_finite(instructions):
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 2.0], [0.0, torch.nan, 1.0, 0.0]])
    log_sum, likeliest = calls.totals(logits)
    torch.testing.assert_close(log_sum[0], logits[0].logsumexp(-1))
    assert likeliest[0] == 3 and log_sum[1].isnan() and 0 <= likeliest[1] < 4


@needs_native
@pytest.mark.parametrize(("out", "size"), SIZES)
@pytest.mark.parametrize("dtype", native.DTYPES, ids=str)
def test_products_equal_float64(instructions, threads, dtype, out, size):
    weight, bias = random(out, size, dtype=dtype), random(out, dtype=dtype, seed=1)
    for rows in ROWS:
        x = random(rows, size, dtype=dtype, seed=rows)
        for offset in (None, bias):
            exact = x.double() @ weight.double().T + (0 if offset is None else offset.double())
            scale = x.double().abs() @ weight.double().abs().T + 1  # of the sum's terms
            error = (calls.linear(x, weight, offset).double() - exact).abs()
            unit = 2**-8 if dtype == torch.bfloat16 else 0  # the result is rounded once
            assert (error <= exact.abs() * unit + scale * 2e-7).all(), rows


@needs_native
@pytest.mark.parametrize("dtype", native.DTYPES, ids=str)
def test_a_row_does_not_depend_on_the_others(instructions, dtype):
    weight, x = random(100, 96, dtype=dtype), random(40, 96, dtype=dtype, seed=1)
    alone = torch.cat([calls.linear(row[None], weight) for row in x])
    assert torch.equal(calls.linear(x, weight), alone)


@needs_native
@pytest.mark.parametrize("size", [64, 70])
@pytest.mark.parametrize("dtype", native.DTYPES, ids=str)
def test_nan_and_infinity_pass_through_their_own_rows_and_outputs(instructions, dtype, size):
    weight, x = torch.ones(20, size, dtype=dtype), torch.ones(5, size, dtype=dtype)
    x[1, 3], x[2, size - 1], weight[4, 5] = float("nan"), float("inf"), float("-inf")
    found = calls.linear(x, weight)
    assert found[1].isnan().all() and found[2, 0] == float("inf") and found[2, 4].isnan()
    assert (found[[0, 3, 4]][:, 4] == float("-inf")).all()
    assert (found[[0, 3, 4]][:, :4] == size).all() and (found[[0, 3, 4]][:, 5:] == size).all()


@needs_native
def test_there_is_one_openmp():
    """Two would be two pools of threads that wait for each other's processors."""
    calls.linear(torch.ones(1, 4), torch.ones(4, 4))
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not say what is loaded")
    loaded = {line.split()[-1] for line in maps.read_text().splitlines() if "libgomp" in line or "libomp" in line}
    assert len(loaded) == 1


def started(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


PRODUCT = (
    "import torch; from eagle.nn.packed import Product; print(Product(torch.nn.Linear(4, 4))(torch.ones(1, 4)).shape)"
)
REASON = "from eagle.nn import native; print(native.unavailable())"


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"EAGLE_NATIVE": "0"}, "EAGLE_NATIVE=0"),
        ({"CXX": "false", "EAGLE_NATIVE_CACHE": "{tmp}"}, "false failed: no message"),
        ({"EAGLE_NATIVE_CACHE": "/proc/nowhere"}, "/proc/nowhere"),
    ],
)
def test_without_it_there_is_a_reason_and_everything_runs(tmp_path, environment, reason):
    environment = {name: value.format(tmp=tmp_path) for name, value in environment.items()}
    found = started(f"{REASON}; {PRODUCT}", **environment)
    assert reason in found and "torch.Size([1, 4])" in found


def test_an_unknown_wish_is_refused(monkeypatch):
    monkeypatch.setenv("EAGLE_NATIVE", "sse9")
    with pytest.raises(ValueError, match="EAGLE_NATIVE='sse9'.*avx2"):
        native.load.__wrapped__()


def test_the_command_says_what_there_is(capsys):
    """`python -m eagle.native`"""
    from eagle.native import main

    assert main([]) == 0
    said = capsys.readouterr().out
    assert [line.split(":")[0] for line in said.splitlines()[:3]] == ["few rows", "levels", "decisions"]
    assert MISSING or "levels: compiled" in said and "decisions: compiled" in said
