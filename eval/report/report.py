"""Answer files as a report: Markdown, JSON, PNG pictures and one self-contained HTML page.

    python -m eval.report results/demo                       reads every answer file in it, writes beside them
    python -m eval.report A.jsonl B.jsonl --output DIR       several files; shards of one run are joined

Methods with equal settings are compared in one section. DIR also gets model_answer/METHOD.jsonl, the answers in
FastChat's layout (shards joined, failed questions left out), for its MT-Bench judge.
"""

import argparse
import json
import re
from pathlib import Path

from eagle import command
from eagle.files import check_writable, write_whole
from eval.report import metrics
from eval.report.html import page
from eval.report.markdown import markdown_table
from eval.report.plots import plots
from eval.report.summary import Section, sections
from eval.report.tables import headline, markdown
from eval.run import answers


def slug(section: Section, number: int, count: int) -> str:
    """A section's prefix in file names; none where there is only one section."""
    return "" if count == 1 else f"{number + 1}-{re.sub(r'[^a-z0-9]+', '-', section['title'].lower()).strip('-')}-"


def write_model_answers(runs: list[answers.Answers], folder: Path) -> None:
    """FastChat's `model_answer` layout: one file per method, one line per question."""
    if len({run.name for run in runs}) < len(runs):
        return  # several settings of one method: the file's name could not tell them apart
    for run in runs:
        lines = [json.dumps(entry) for entry in metrics.finished(run).values()]
        write_whole(folder / f"{run.name}.jsonl", "".join(line + "\n" for line in lines))


def write(paths: list[str], output: Path) -> list[Section]:
    """Read answer files, write the report, print the headline tables. Returns the sections.

    Raises ValueError for a damaged answer file or where nothing can be written to `output`.
    """
    check_writable(output / "report.json")
    runs = answers.read(paths)
    found = sections(runs)
    pictures = [plots(section) for section in found]
    for number, (section, drawn) in enumerate(zip(found, pictures, strict=True)):
        for name, content in drawn.items():
            write_whole(output / f"{slug(section, number, len(found))}{name}.png", content)
    write_whole(output / "report.json", json.dumps({"sections": found}, indent=1) + "\n")
    write_whole(output / "report.md", "# Speculative decoding report\n\n" + "\n".join(map(markdown, found)))
    write_whole(output / "report.html", page(found, pictures))
    write_model_answers(runs, output / "model_answer")
    for section in found:
        table = headline(section)
        print(f"\n{section['title']}\n\n{markdown_table(table.header, table.rows)}")
    print(f"\nreport: {output / 'report.html'}")
    return found


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = command.parser("eval.report", __doc__)
    parser.add_argument("answers", nargs="+", help="answer files, or directories of them")
    parser.add_argument("--output", metavar="DIR", help="where to write (default: beside the first answer file)")

    def work(options: argparse.Namespace) -> None:
        first = Path(options.answers[0])
        write(options.answers, Path(options.output or (first if first.is_dir() else first.parent)))

    return command.start(parser, work, argv, lambda _: "The answers are untouched; run the command again.")


if __name__ == "__main__":
    raise SystemExit(main())
