"""Links, anchors and blocks of code of Markdown pages, as the site and the tests see them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<info>[^`]*)$")
_COMMENT = re.compile(r"^<!--\s*not run:\s*(?P<why>.*?)\s*-->$")
_CODE = re.compile(r"(?<!`)(`+)(?!`)((?:(?!\n\s*\n).)+?)(?<!`)\1(?!`)", flags=re.S)  # within a paragraph
_LINK = re.compile(r"!?\[(?:(?!\n\s*\n)[^\[\]]|\[[^\]]*\])*\]\(\s*<?(?P<target>[^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_REFERENCE = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?(?P<target>\S+?)>?(?:\s.*)?$", flags=re.M)
_HTML_LINK = re.compile(r"<(?:a|img|source)\s[^>]*?(?:href|src|srcset)=\"(?P<target>[^\"]+)\"")
_HEADING = re.compile(r"^ {0,3}#{1,6}\s+(?P<text>.*?)\s*#*$")
_HTML_ANCHOR = re.compile(r"<\w+\s[^>]*?\b(?:id|name)=\"(?P<name>[^\"]+)\"")


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    line: int  # of its opening fence, from 1
    language: str  # empty where there is none
    text: str
    why_not_run: str  # of the comment just before it; empty without one


def blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a page, those in lists too."""
    found: list[Block] = []
    lines = text.splitlines()
    i, why = 0, ""
    while i < len(lines):
        opening = _FENCE.match(lines[i])
        if opening is None:
            if lines[i].strip():
                comment = _COMMENT.match(lines[i].strip())
                why = comment["why"] if comment else ""
            i += 1
            continue
        start, indent = i, len(opening["indent"])
        i += 1
        content = []
        while i < len(lines) and not re.match(rf"^ *{re.escape(opening['fence'])}[`~]*\s*$", lines[i]):
            content.append(lines[i][min(indent, len(lines[i]) - len(lines[i].lstrip())) :])
            i += 1
        language = opening["info"].split()[0] if opening["info"].split() else ""
        found.append(Block(start + 1, language, "\n".join(content) + "\n", why))
        i, why = i + 1, ""
    return found


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines outside of blocks, with their numbers from 1."""
    inside = ""
    for number, line in enumerate(text.splitlines(), 1):
        fence = _FENCE.match(line)
        if inside:
            if line.strip().startswith(inside) and not line.strip().strip("`~"):
                inside = ""
        elif fence:
            inside = fence["fence"]
        else:
            yield number, line


def links(text: str) -> Iterator[tuple[int, str]]:
    """Yield the targets of all links and images, with their lines; those in code are none."""
    for start, end in _targets(text):
        yield text.count("\n", 0, start) + 1, text[start:end]


def with_links(text: str, renamed: Callable[[str], str]) -> str:
    """Return a page with other targets of its links."""
    for start, end in sorted(_targets(text), reverse=True):
        text = f"{text[:start]}{renamed(text[start:end])}{text[end:]}"
    return text


def _targets(text: str) -> Iterator[tuple[int, int]]:
    """Yield where the targets of a page's links begin and end."""
    outside = dict(prose(text))
    lines = text.splitlines(keepends=True)
    blanked = (line if number in outside else re.sub(r"[^\n]", " ", line) for number, line in enumerate(lines, 1))
    plain = _CODE.sub(lambda code: re.sub(r"[^\n]", "`", code[0]), "".join(blanked))
    for kind in (_LINK, _REFERENCE, _HTML_LINK):
        for found in kind.finditer(plain):
            yield found.span("target")


def code_spans(text: str) -> Iterator[tuple[int, str]]:
    """Yield code within lines, with its line."""
    for number, line in prose(text):
        for found in _CODE.finditer(line):
            yield number, found[2]


def anchors(text: str) -> set[str]:
    """Return what a link to this page may have after `#`: its headings, as code hosts name them, and HTML's names."""
    found: set[str] = set()
    for _, line in prose(text):
        found |= {name["name"] for name in _HTML_ANCHOR.finditer(_CODE.sub("", line))}
        if heading := _HEADING.match(line):
            slug = slugify(heading["text"])
            number, name = 0, slug
            while name in found:
                number += 1
                name = f"{slug}-{number}"
            found.add(name)
    return found


def slugify(heading: str, separator: str = "-") -> str:
    """Return a heading's anchor: lower case, without marks, each blank a dash. The site names them alike."""
    plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # the words of links
    plain = re.sub(r"<[^>]+>", "", plain)
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", separator)


def target_of(page: Path, link: str) -> tuple[Path, str] | None:
    """Return the file that a link of a page leads to, and the anchor in it; None for addresses of the web.

    A directory stands for its README.md, as code hosts show it.
    """
    if re.match(r"^[a-z][a-z0-9+.-]*:", link) or link.startswith("//"):
        return None
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page.resolve()
    if target.is_dir() and (target / "README.md").exists():
        target /= "README.md"
    return target, anchor
