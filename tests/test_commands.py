"""Every command (`python -m MODULE`) has a help text and a tiny run, and the documents name flags that exist."""

import ast
import functools
import re
import runpy
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("hsd", "eagle", "eval")
TEXTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "checkpoints/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "scripts").glob("*.sh")),
]
# A command in a document may be cut short where it is wrapped; a flag in brackets or after a # is read as well.
CALL = re.compile(r"-m ((?:hsd|eagle|eval)(?:\.\w+)*)((?:[^\n`\\]|\\\n)*)")
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
PASSED_ON = {"--help"}

# The test that runs each command on something tiny: file below tests/, function. It calls main or starts the module.
TRIED_IN = {
    "hsd.audit": ("hsd/test_hsd_audit.py", "test_the_shipped_verifiers_pass_and_the_published_rule_is_shown_as_lossy"),
    "eagle.calibrate": ("eagle/autotune/test_calibrate.py", "test_a_calibration_is_written_beside_the_head"),
    "eagle.chat": ("eagle/test_chat.py", "test_piped"),
    "eagle.convert": ("eagle/test_convert.py", "test_command_line"),
    "eagle.checkpoints.fetch": (
        "eagle/checkpoints/test_fetch.py",
        "test_a_target_is_fetched_converted_and_fetched_once",
    ),
    "eagle.evaluation.gen_ea_answer_llama3chat": ("eval/test_protocols.py", "test_eagle_s_entries"),
    "eagle.evaluation.gen_baseline_answer_llama3chat": ("eval/test_protocols.py", "test_eagle_s_entries"),
    "eagle.serve": ("eagle/serve/test_server.py", "test_the_command_ends_by_a_signal_and_leaves_nothing"),
    "eagle.train": ("eagle/train/test_resume.py", "test_kill_9"),
    "eagle.train.average": ("eagle/train/test_average.py", "test_weights_are_averaged_and_the_vocabulary_kept"),
    "eagle.train.regenerate": ("eagle/train/test_regenerate.py", "test_several_turns_and_exact_ids"),
    "eagle.train.demo.target": ("eagle/train/test_demo_target.py", "test_the_result_loads_and_speaks"),
    "eagle.train.demo.corpus": ("eagle/train/test_corpus.py", "test_the_command_writes_three_files"),
    "eagle.train.evaluation.held_out": ("eagle/train/test_held_out.py", "test_table_and_json"),
    "eagle.train.evaluation.plot": ("eagle/train/test_loop.py", "test_curves_are_drawn"),
    "eagle.train.evaluation.learning": ("eagle/train/test_learning.py", "test_exact_points_are_foretold"),
    "eagle.train.evaluation.compare": ("eagle/train/test_compare.py", "test_table"),
    "eagle.native": ("eagle/nn/test_native.py", "test_the_command_says_what_there_is"),
    "eval.engines": ("eval/engines/test_side_by_side.py", "test_a_table_by_engine"),
    "eval": ("eval/test_command_line.py", "test_the_real_engine_from_disk"),
    "eval.accuracy": ("eval/test_accuracy.py", "test_a_run_that_goes_on_with_more_questions"),
    "eval.demo": ("eval/test_demo.py", "test_it_falls_back_to_the_embedded_pair_and_prints_nothing_else"),
    "eval.report.report": ("eval/report/test_report.py", "test_report_command_equals_the_run_s_own_report"),
    "eval.report.released": ("eval/report/test_released.py", "test_by_hand"),
    "eval.report.embed": ("eval/report/test_embed.py", "test_a_marked_table_is_rewritten"),
    "eval.questions.downloads": ("eval/questions/test_benchmarks.py", "test_the_command_lists_and_downloads"),
    "eval.measure.budget": ("eval/measure/test_budget.py", "test_the_command_prints_every_candidate"),
    "eval.measure.numerics": ("eval/measure/test_numerics.py", "test_a_row_per_dtype"),
    "eval.measure.operators": ("eval/measure/test_operators.py", "test_a_table_per_variant"),
    "eval.measure.products": ("eval/measure/test_products.py", "test_tables_by_shape_and_rows"),
    "eval.measure.step_time": ("eval/measure/test_step_time.py", "test_rows_by_variant"),
    "eval.measure.verification": ("eval/measure/test_verification.py", "test_rows_by_draft_vocabulary"),
    "eval.measure.tree_picture": ("eval/measure/test_tree_picture.py", "test_a_picture_is_written"),
    "eval.measure.gains": ("eval/measure/test_gains.py", "test_a_picture_of_two_runs_and_their_table"),
    "eval.measure.optimum": ("eval/measure/test_optimum.py", "test_a_row_per_shape_and_tree"),
    "eval.measure.paths": ("eval/measure/test_paths.py", "test_a_run_that_is_resumed_and_its_table"),
    "eval.measure.paths_table": ("eval/measure/test_paths.py", "test_a_run_that_is_resumed_and_its_table"),
    "eval.measure.table": ("eval/measure/test_table.py", "test_a_table_that_is_resumed"),
    "eval.measure.batch": ("eval/measure/test_batch.py", "test_rows_by_batch_size_and_method"),
}
SHORT_NAMES = {  # modules that only forward to another command
    "eval.report": "eval.report.report",
    "eval.reports": "eval.report.report",
}


def commands() -> list[str]:
    """Modules with a `__main__` guard, as `python -m` names them."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    paths = [path for path in paths if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")]
    paths = [path for path in paths if not path.name.endswith("_run.py")]  # for the interpreters of other engines
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__main__") for name in names]


COMMANDS = commands()


@functools.cache
def help_of(module: str) -> str:
    """What `python -m MODULE --help` prints, run in this process."""
    printed: list[str] = []
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # runpy: the module was imported before it is run
        patch.setattr(sys, "argv", [module, "--help"])
        patch.setattr("argparse.ArgumentParser._print_message", lambda _, message, *_file: printed.append(message))
        with pytest.raises(SystemExit) as leaving:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert leaving.value.code in (0, None), module
    return "".join(printed)


def documented() -> list[tuple[str, str, set[str]]]:
    """(document, module, flags) of every command a document or script names."""
    found = []
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        found += [(path.name, call[1].rstrip("."), set(FLAG.findall(call[2]))) for call in CALL.finditer(text)]
    return found


@pytest.mark.parametrize("module", COMMANDS)
def test_help_explains(module):
    text = help_of(module)
    assert "usage:" in text
    assert len(text) > 200, text


def test_documents_name_commands_and_flags_that_exist():
    calls = documented()
    assert len(calls) > 20
    for document, module, flags in calls:
        assert module in COMMANDS, f"{document} names python -m {module}, which is no command"
        unknown = flags - set(FLAG.findall(help_of(module))) - PASSED_ON
        assert not unknown, f"{document}: python -m {module} has no {sorted(unknown)}"


def test_every_command_is_run_on_something_tiny():
    assert set(COMMANDS) == set(TRIED_IN) | set(SHORT_NAMES), "name in TRIED_IN the test that runs the command"


@pytest.mark.parametrize("module", SHORT_NAMES)
def test_a_short_name_is_the_command_it_stands_for(module):
    assert help_of(module).split("usage:")[1].split()[1:] == help_of(SHORT_NAMES[module]).split("usage:")[1].split()[1:]


@pytest.mark.parametrize("module", TRIED_IN)
def test_the_tiny_run_is_a_test_of_that_command(module):
    file, function = TRIED_IN[module]
    text = (ROOT / "tests" / file).read_text(encoding="utf-8")
    assert function in {node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    package, _, last = module.rpartition(".")
    assert module in text or f"from {package} import {last}" in text, f"{file} does not name {module}"
