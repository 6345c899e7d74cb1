"""Hook of mkdocs: files of the repository that pages link to, such as ../CONTRIBUTING.md, are in the site, too.

Pages link as a code host shows them. In the site README.md is the front page, and what lies beside docs/ stands under
repository/, with everything that it links to in turn.
"""

from __future__ import annotations

import os
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.markdown import ROOT, links, target_of, with_links

DOCS = ROOT / "docs"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the linked files, and those that they link to."""
    waiting = [ROOT / "README.md", *(Path(str(file.abs_src_path)) for file in files.documentation_pages())]
    seen = set(waiting)
    for page in waiting:
        for _, link in links(page.read_text()) if page.suffix == ".md" else ():
            found = target_of(page, link)
            if found is not None and found[0].is_file() and found[0] not in seen:
                seen.add(found[0])
                waiting.append(found[0])
    for path in waiting:
        if files.get_file_from_path(place_of(path)) is None:
            files.append(File.generated(config, place_of(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a page to where their targets are in the site."""
    here = Path(str(page.file.abs_src_path))

    def renamed(link: str) -> str:
        found = target_of(here, link)
        if found is None or not link.partition("#")[0]:
            return link
        target, anchor = found
        place = os.path.relpath(place_of(target), str(Path(page.file.src_uri).parent))
        return f"{Path(place).as_posix()}{'#' if anchor else ''}{anchor}"

    return with_links(markdown, renamed)


def place_of(path: Path) -> str:
    """Return where a file of the repository is in the site."""
    if path == ROOT / "README.md":
        return "index.md"
    return str(path.relative_to(DOCS) if DOCS in path.parents else Path("repository") / path.relative_to(ROOT))
