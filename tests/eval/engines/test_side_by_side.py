"""`python -m eval.engines`: this project and transformers on the demo pair, in processes of their own."""

import json

from eval.engines import __main__ as engines
from eval.engines.__main__ import main


def test_an_engine_that_is_not_installed_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HSD_ENGINES", str(tmp_path / "none"))
    assert main(["--engines", "vllm", "--pair", "demo", "--bench", "gsm8k", "--output", str(tmp_path)]) == 2
    assert "bash scripts/engines.sh vllm" in capsys.readouterr().err


def test_a_table_by_engine(tmp_path, capsys):
    flags = [
        "--pair",
        "demo",
        "--bench",
        "gsm8k",
        "--protocol",
        "sample",
        "--num-questions",
        "1",
        "--max-new-tokens",
        "6",
    ]
    more = ["--rounds", "1", "--patience", "0", "--threads", "1", "--dtype", "float32", "--output", str(tmp_path)]
    assert main(["--engines", "transformers", *flags, *more]) == 0
    assert "| transformers | plain |" in capsys.readouterr().out
    found = json.loads((tmp_path / "engines.json").read_text())
    assert [row["n"] for row in found["rows"]] == [1] and found["rows"][0]["rate"] > 0


def test_an_interrupted_call_goes_on_and_a_finished_one_starts_again(tmp_path, monkeypatch):
    ran = []

    def job(engine, job, folder):
        ran.append(job["tree"])
        if len(ran) == 2:
            raise ValueError("the engine ended")
        return {"tokens": [[1, 2, 3]], "each": [0.5], "accepted": 0, "drafts": 0, "memory": 1}

    monkeypatch.setattr(engines, "run_job", job)
    monkeypatch.setattr(engines, "busy", lambda: 0.0)
    monkeypatch.setattr(engines, "read_rate", lambda _: 1e10)
    flags = ["--engines", "ours", "--pair", "demo", "--bench", "gsm8k", "--protocol", "sample", "--num-questions", "1"]
    flags += ["--rounds", "1", "--patience", "0", "--threads", "1", "--dtype", "float32", "--output", str(tmp_path)]
    assert main(flags) == 2 and ran == ["none", "auto"]
    assert main(flags) == 0 and ran[2:] == ["auto", "chain"]
    assert main(flags) == 0 and ran[4:] == ["none", "auto", "chain"]


def test_a_job_of_this_project_counts_its_drafts():
    from eagle.checkpoints.pairs import resolve_pair
    from eval.engines.local_run import ours

    pair = resolve_pair("demo")
    job = {"target": str(pair.target), "head": str(pair.head), "dtype": "float32", "tree": "chain", "draft": 3}
    job |= {"prompts": [[5, 1200, 77, 301]], "warm_up": 0, "max_tokens": 12, "temperature": 0.0, "stop": []}
    found = ours(job)
    assert len(found["tokens"][0]) == 12 and found["drafts"] > 0 and len(found["each"]) == 1
    assert found["drafted"] == 3 * found["drafts"] >= found["accepted"]
