"""`python -m eval.measure.verification` on a tiny vocabulary; its loops verify what `hsd` verifies."""

import contextlib
import gc
import json
import random
import statistics
import types
import weakref

import pytest
import torch

import hsd
from eval.measure import verification


def test_rows_by_draft_vocabulary(tmp_path, capsys):
    path = tmp_path / "rows.json"
    sizes = ["--vocabulary", "60", "--draft-vocabulary", "60", "40", "--repeats", "1"]
    assert verification.main([*sizes, "--output", str(path)]) == 0
    rows = [(row["draft_vocabulary"], row["what"]) for row in json.loads(path.read_text())["rows"]]
    timed = ["softmax", "verify hsd", "verify token", "verify greedy", "scalar loop"]
    assert rows == [(60, name) for name in [*timed[:4], "tensor loop", timed[4]]] + [(40, name) for name in timed]
    assert capsys.readouterr().out.count("| 60 | verify hsd |") == 1


@pytest.fixture(scope="module")
def tree_and_probs():
    tree, logits = verification.hybrid_tree(40, 40, "cpu")
    return tree, logits.softmax(-1)


@pytest.mark.parametrize("loop", ["tensor", "scalar"])
def test_the_loops_stop_where_the_stopping_distribution_says(tree_and_probs, loop):
    """Mean depth over many draws against E[accepted], within 4 standard errors."""
    tree, probs = tree_and_probs
    depths = [0]
    for parent in tree.parents.tolist()[1:]:
        depths.append(depths[parent] + 1)
    torch.manual_seed(0)
    plain, rng = verification.plain_tree(tree, probs), random.Random(0)
    once = {
        "tensor": lambda: verification.tensor_loop(tree, probs),
        "scalar": lambda: verification.scalar_loop(plain, rng),
    }
    found = [depths[once[loop]()[0]] for _ in range({"tensor": 300, "scalar": 2000}[loop])]
    expected = hsd.stopping_law(tree, probs).expected_accepted.item()
    error = statistics.stdev(found) / len(found) ** 0.5
    assert abs(statistics.fmean(found) - expected) < 4 * error


def test_what_a_graph_reads_outlives_its_replays(monkeypatch):
    """A graph has addresses alone: tensors that nobody else holds would be freed before the replays."""
    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    stand_ins = {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda _: contextlib.nullcontext(),
        "CUDAGraph": lambda: types.SimpleNamespace(replay=lambda: None),
        "graph": lambda _: contextlib.nullcontext(),
    }
    for name, value in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, value)
    reads, writes = torch.ones(3), []

    def action(x=reads):
        found = x + 1
        writes.append(weakref.ref(found))
        return found

    replay, read = verification.captured(action), weakref.ref(reads)
    del action, reads
    gc.collect()
    assert read() is not None and writes[-1]() is not None
    replay()
    del replay
    gc.collect()
    assert read() is None and writes[-1]() is None
