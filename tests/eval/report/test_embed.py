"""`python -m eval.report.embed`: marked tables are rewritten, or only named with --check."""

from eval.report import embed
from tests.eval.helpers import evaluate

MARK = "before\n<!-- table: mine -->\nold\n<!-- /table -->\nafter\n"


def test_a_marked_table_is_rewritten(tmp_path, monkeypatch, capsys):
    assert evaluate(tmp_path / "run", "--num-questions", "2") == 0
    monkeypatch.setattr(embed, "RESULTS", tmp_path)
    (tmp_path / "mine.json").write_bytes((tmp_path / "run" / "report.json").read_bytes())
    page = tmp_path / "page.md"
    page.write_text(MARK)
    assert embed.main(["--check", str(page)]) == 1
    assert page.read_text() == MARK
    assert "out of date" in capsys.readouterr().out
    assert embed.main([str(page)]) == 0
    assert embed.main(["--check", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| hybrid+hsd | 3" in text


def test_a_missing_report_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(embed, "RESULTS", tmp_path)
    (tmp_path / "page.md").write_text(MARK)
    assert embed.main([str(tmp_path / "page.md")]) == 2
    assert "table 'mine'" in capsys.readouterr().err
