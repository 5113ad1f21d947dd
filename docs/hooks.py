"""What the site does with the repository's text. Read by mkdocs.yml twice: as a hook of mkdocs and as an extension of
griffe, which reads the docstrings.
"""

import re
from typing import Any

import griffe

OUTSIDE = re.compile(r"\[([^\]]*)\]\((?:\.\./)+([^)#]*)[^)]*\)")
LINK = re.compile(r"\]( ?)\[")
COLUMNS = re.compile(r"\S {2,}\S|^ ", re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with links out of docs/ as text: `[text](../path)` leads nowhere on a site without the repository."""
    above = page.file.src_uri.count("/") + 1

    def named(link: re.Match[str]) -> str:
        if not link[0].split("](")[1].startswith("../" * above):
            return link[0]
        return f"`{link[2]}`" if link[2].endswith(link[1].strip("`")) else f"{link[1]} (`{link[2]}`)"

    return OUTSIDE.sub(named, markdown)


class Docstrings(griffe.Extension):
    """Docstrings are written for help(): where they have columns or are indented, lines stay as they are; elsewhere the
    brackets of `keys[0] [B, G]` are no link.
    """

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Replace the text."""
        if obj.docstring:
            paragraphs = obj.docstring.value.split("\n\n")
            shown = [f"~~~text\n{one}\n~~~" if COLUMNS.search(one) else LINK.sub(r"]\1\[", one) for one in paragraphs]
            obj.docstring.value = "\n\n".join(shown).replace("\n~~~\n\n~~~text\n", "\n\n")
