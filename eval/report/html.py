"""A report as one HTML page; styles and pictures are inside."""

import base64
import re
from collections.abc import Sequence
from html import escape

from eval.report.markdown import Table
from eval.report.summary import Section
from eval.report.tables import tables

STYLE = """
:root { --ink: #1c2430; --soft: #5c6675; --line: #e3e7ec; --accent: #d9622b; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: var(--ink);
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 20px; margin: 40px 0 4px; }
h3 { font-size: 15px; margin: 0 0 4px; }
p { margin: 0 0 10px; color: var(--soft); }
section.card { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px;
               margin: 14px 0; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th { text-align: right; font-weight: 600; color: var(--soft); border-bottom: 2px solid var(--line);
     padding: 6px 8px; white-space: nowrap; }
td { text-align: right; padding: 6px 8px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tbody tr:last-child td { border-bottom: 0; }
td .interval { color: var(--soft); font-size: 12px; margin-left: 4px; }
td:first-child { font-weight: 600; }
table.many td .interval { display: block; margin: 0; }
table.text td, table.text th { text-align: left; white-space: normal; vertical-align: top;
                               overflow-wrap: anywhere; }
figure { margin: 0; } img { max-width: 100%; height: auto; display: block; }
.pictures { display: grid; grid-template-columns: repeat(2, 1fr); gap: 14px; margin: 14px 0; }
.pictures figure { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 14px; }
.pictures figure.wide { grid-column: 1 / -1; }
@media (max-width: 720px) { .pictures { grid-template-columns: 1fr; } }
"""
WIDE = {"overview", "step_time", "categories"}
TEXT_TABLES = {"Made with", "Failed questions", "Published numbers", "Runaway answers"}
CAPTIONS = {
    "overview": "Tokens per target call and tokens per second, with 95 % intervals over questions",
    "acceptance": "Share of steps that accept at least d draft tokens",
    "distribution": "How many draft tokens a step accepts",
    "step_time": "Milliseconds per step in each phase",
    "categories": "Tokens per target call by category",
}


def cell(text: str) -> str:
    """A table cell; the interval behind a number is set smaller."""
    found = re.fullmatch(r"(.+?) (\[[^\]]*\])(.*)", text)
    if not found:
        return escape(text)
    value, interval, mark = map(escape, found.groups())
    return f'{value}{mark} <span class="interval">{interval}</span>'


def html_table(table: Table) -> str:
    """A table with its header."""
    head = "".join(f"<th>{escape(title)}</th>" for title in table.header)
    body = "".join("<tr>" + "".join(f"<td>{cell(text)}</td>" for text in row) + "</tr>" for row in table.rows)
    kind = "text" if table.title in TEXT_TABLES else "many" if len(table.header) > 8 else "plain"
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def card(table: Table) -> str:
    """A table with its title and note, in a frame."""
    note = re.sub(r"`([^`]+)`", r"<code>\1</code>", f"<p>{escape(table.note)}</p>") if table.note else ""
    return f'<section class="card"><h3>{escape(table.title)}</h3>{note}{html_table(table)}</section>'


def picture(name: str, content: bytes) -> str:
    """A PNG inside the page."""
    wide = ' class="wide"' if name in WIDE else ""
    data = base64.b64encode(content).decode("ascii")
    return f'<figure{wide}><img alt="{escape(CAPTIONS[name])}" src="data:image/png;base64,{data}"></figure>'


def html_section(section: Section, pictures: dict[str, bytes]) -> str:
    """One section: the headline table, the pictures, the other tables."""
    first, *rest = tables(section)
    shown = "".join(picture(name, content) for name, content in pictures.items())
    return f'<h2>{escape(section["title"])}</h2>{card(first)}<div class="pictures">{shown}</div>' + "".join(
        card(table) for table in rest
    )


def page(sections: Sequence[Section], pictures: Sequence[dict[str, bytes]]) -> str:
    """The whole report: one part per section, its pictures inline."""
    body = "".join(html_section(section, shown) for section, shown in zip(sections, pictures, strict=True))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Speculative decoding report'
        f"</title><style>{STYLE}</style></head><body><main><h1>Speculative decoding report</h1>"
        "<p>tau = tokens per target call, bonus token included. Definitions: eval/report/metrics.py.</p>"
        f"{body}</main></body></html>\n"
    )
