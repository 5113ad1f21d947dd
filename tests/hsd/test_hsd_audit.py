"""The audit certifies what is lossless, catches what is not, and knows the optimum."""

import errno
import json

import pytest

import hsd
from hsd.audit.__main__ import known, main
from hsd.audit.exact import coverage_bound, examine
from hsd.audit.optimum import optimum
from hsd.audit.report import families
from hsd.audit.worlds import RECIPES, WORLDS, enumerate_drafts, random_world


@pytest.mark.parametrize("broken", ["residual_not_updated", "topk_treated_as_sampled_from_q", "not_a_number"])
def test_a_wrong_verifier_fails_the_audit(broken: str, capsys) -> None:
    assert main(["--verifier", f"tests.hsd.broken_verifiers:{broken}", "--families", "quick"]) == 1
    assert "NOT LOSSLESS" in capsys.readouterr().out


def test_the_shipped_verifiers_pass_and_the_published_rule_is_shown_as_lossy(tmp_path) -> None:
    file = tmp_path / "rows.json"
    assert main(["--families", "quick", "--json", str(file), "--plot", str(tmp_path / "picture.png")]) == 0
    rows = json.loads(file.read_text())
    assert {row["verifier"] for row in rows} == set(hsd.VERIFIERS)
    lossy = {row["verifier"] for row in rows if row["verdict"] == "lossy, as stated"}
    assert lossy == {"published"}
    assert not any(row["verdict"] == "NOT LOSSLESS" for row in rows)
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_a_foreign_verifier_may_refuse_families(capsys) -> None:
    assert main(["--families", "quick", "--verifier", "tests.hsd.broken_verifiers:paths_only"]) == 0
    assert "refuses multi" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["as_in_the_registry", "lossy_entry"])
def test_a_verifier_as_it_stands_in_the_registry(form: str, capsys) -> None:
    assert main(["--families", "quick", "--verifier", f"tests.hsd.broken_verifiers:{form}"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if form in line]
    assert len(rows) == (4 if form == "as_in_the_registry" else 1)
    assert all(("lossy, as stated" in row) == (form == "lossy_entry") for row in rows)


@pytest.mark.parametrize("flag", ["--json", "--plot"])
def test_a_place_that_cannot_be_written_is_found_before_the_work(flag: str, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("hsd.audit.__main__.audit", lambda *_: pytest.fail("worked before the place was tried"))
    for place in (tmp_path, tmp_path / "none" / "rows"):
        with pytest.raises(SystemExit) as exit_:
            main([flag, str(place)])
        assert exit_.value.code == 2
        said = capsys.readouterr().err
        assert str(place) in said
        assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("nonsense", "module:function"), ("no_such_module:f", "no_such_module"), ("math:no_such", "no_such")],
)
def test_an_unknown_verifier_is_explained(name: str, message: str, capsys) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--verifier", name])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_refusing_everything_certifies_nothing(capsys) -> None:
    assert main(["--families", "quick", "--verifier", "tests.hsd.broken_verifiers:refuses"]) == 1
    assert "NOT CERTIFIED" in capsys.readouterr().out


def test_the_optimum_is_reached_where_theory_says_so_and_never_passed() -> None:
    for family in families("standard"):
        world = random_world(family.world, 3, 2, 11, **WORLDS[family.world])
        drafts = enumerate_drafts(world, RECIPES[family.recipe])
        if len(drafts) > 100:
            continue
        best, bound = optimum([world], [drafts]), coverage_bound(world, drafts)
        accepted = examine(world, drafts, known("hsd").rule).accepted
        assert accepted <= best + 1e-8
        assert best <= bound + 1e-8
        if family.recipe in ("top-k", "chain"):  # block verification is optimal for one path
            assert accepted == pytest.approx(best, abs=1e-8)


@pytest.mark.parametrize("flag", ["--json", "--plot"])
def test_a_file_that_cannot_be_written_is_one_line_and_leaves_no_half(flag, tmp_path, capsys, monkeypatch):
    def full(path, *_):
        raise OSError(errno.ENOSPC, "No space left on device")

    file = tmp_path / "old.png"
    file.write_text("old")
    monkeypatch.setattr("hsd.audit.__main__.plot", lambda rows, path: full(path))
    monkeypatch.setattr("pathlib.Path.write_text", full)
    assert main(["--families", "quick", "--verifier", "token", flag, str(file)]) == 2
    assert capsys.readouterr().err == f"error: [Errno {errno.ENOSPC}] No space left on device: '{file}'\n"
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"]
    assert file.read_bytes() == b"old"
