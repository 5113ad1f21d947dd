"""`python -m eval.measure.products`: a table per shape of the demo target, and one of forwards."""

import pytest
import torch

from eval.measure import products


def test_tables_by_shape_and_rows(capsys, monkeypatch):
    monkeypatch.setattr(products, "READ_BYTES", 2**12)
    threads = torch.get_num_threads()
    assert products.main(["--rows", "1", "3", "--context", "16", "--rounds", "1", "--threads", str(threads)]) == 0
    printed = capsys.readouterr().out
    assert "read: " in printed and "4096 x 256 (1), GB/s" in printed and "forward behind 16 tokens, ms" in printed
    assert printed.count("| torch |") == printed.count("GB/s |") and "| stock |" in printed


def test_rows_beyond_the_context_are_refused(capsys):
    with pytest.raises(SystemExit):
        products.main(["--rows", "8", "--context", "4"])
    assert "--context 4" in capsys.readouterr().err
