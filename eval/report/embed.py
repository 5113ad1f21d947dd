"""Put measured tables into documents: a table in the README is generated from a report, never typed.

    python -m eval.report.embed README.md docs/*.md          rewrite every marked table from docs/results/NAME.json
    python -m eval.report.embed --check README.md            only say which are out of date (exit code 1)

A document marks a table with a pair of comments; NAME.json is the report.json of a run, copied there, or tables that a
command wrote as such (python -m eval.measure.paths_table).

    <!-- table: gsm8k-t1 -->
    <!-- /table -->
"""

import json
import re
from pathlib import Path

from eagle import command
from eagle.files import write_whole
from eval.report.markdown import markdown_table
from eval.report.tables import headline

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
MARKED = re.compile(r"<!-- table: (?P<name>[\w-]+) -->\n.*?<!-- /table -->", re.DOTALL)


def caption(section: dict) -> str:
    """What a reader needs to repeat the numbers: setting, machine, versions, commit."""
    session, settings = section["sessions"][0], section["settings"]
    hardware, git = session["hardware"], session["git"]
    machine = ", ".join(hardware["gpus"]) or f"{hardware['cpu']}, {hardware['threads']} threads"
    commit = (git["commit"] or "unknown")[:9]
    title = section["title"]
    return (
        f"{title[0].upper()}{title[1:]}; seed {settings['seed']}, {settings['dtype']}, {machine}, "
        f"torch {session['versions']['torch']}, commit {commit}. Brackets: 95 % bootstrap intervals over questions."
    )


def render(name: str) -> str:
    """The marked block of docs/results/NAME.json. Raises ValueError when there is no such report."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"table {name!r}: {path} is missing; copy the report.json of a run there")
    parts = [f"<!-- table: {name} -->"]
    found = json.loads(path.read_text(encoding="utf-8"))
    for made in found.get("tables", []):
        parts += [f"**{made['title']}**", "", markdown_table(made["header"], made["rows"]), "", made["note"], ""]
    if "caption" in found:
        parts.append(f"{found['caption']} Brackets: 95 % bootstrap intervals over questions.")
    for section in found.get("sections", []):
        table = headline(section)
        parts += [markdown_table(table.header, table.rows), "", caption(section)]
    return "\n".join([*parts, "<!-- /table -->"])


def embedded(text: str) -> str:
    """`text` with every marked table rendered anew."""
    return MARKED.sub(lambda match: render(match["name"]), text)


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code: 1 with --check where a table is out of date."""
    parser = command.parser("eval.report.embed", __doc__)
    parser.add_argument("documents", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true")
    return command.start(parser, lambda args: rewrite(args.documents, args.check), argv)


def rewrite(documents: list[Path], check: bool) -> int:
    """Render the tables of every document; with `check` only say which differ."""
    stale = []
    for path in documents:
        text = path.read_text(encoding="utf-8")
        new = embedded(text)
        if new != text:
            stale.append(path)
            if not check:
                write_whole(path, new)
    for path in stale:
        print(f"{'out of date' if check else 'rewritten'}: {path}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
