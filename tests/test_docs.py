"""Every page tells the truth of today: links lead somewhere, blocks of code hold, references are those of the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.markdown import ROOT, Block, anchors, blocks, code_spans, links, slugify, target_of, with_links
from tests.doc_blocks import command_faults, faults

LINKED = sorted(
    path
    for folder in (".", "docs", "docs/reference", "cluster", "benchmarks", "examples", "examples/*")
    for path in ROOT.glob(f"{folder}/*.md")
)
SHOWN = [path for path in LINKED if path.name != "CHANGELOG.md"]  # which tells of earlier versions, too


# Links ----------------------------------------------------------------------------------------------------------------


def test_every_link_leads_somewhere() -> None:
    assert [(short(page), fault) for page in LINKED for fault in broken_links(page, page.read_text())] == []


def short(page: Path) -> str:
    return str(page.relative_to(ROOT))


def broken_links(page: Path, text: str) -> Iterator[str]:
    for line, link in links(text):
        found = target_of(page, link)
        if found is None:
            continue
        target, anchor = found
        if ROOT not in target.parents or not target.exists():
            yield f"line {line}: {link}: no such file in the repository"
        elif anchor and anchor not in anchors(target.read_text() if target != page else text):
            yield f"line {line}: {link}: no such heading"


def test_a_wrong_link_is_seen_and_code_holds_none() -> None:
    page = ROOT / "README.md"
    text = "# A `b` & c!\n\n[x](#a-b--c) [y](#b) ![z](docs/no.png) [d](cluster/) `[q](no)`\n\n```text\n[r](no)\n```\n"
    assert [fault.partition(": ")[2] for fault in broken_links(page, text)] == [
        "#b: no such heading",
        "docs/no.png: no such file in the repository",
    ]
    assert anchors('## Two\n\n## Two\n\n<a id="three"></a>\n') == {"two", "two-1", "three"}
    assert slugify("C = 6·N·D: [why](x.md) `a_b`") == "c--6nd-why-a_b"


def test_links_of_several_lines_are_found_and_renamed() -> None:
    text = "a [b\nc](d.md#e) `[f](g)`\n\n```text\n[h](i)\n```\n[j](k.md)\n"
    assert list(links(text)) == [(2, "d.md#e"), (7, "k.md")]
    assert with_links(text, str.upper) == text.replace("d.md#e", "D.MD#E").replace("k.md", "K.MD")


def test_every_page_has_its_place_in_the_site_once() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    placed = re.findall(r"^ *- [^:]+: (\S+\.md)$", text.partition("\nnav:\n")[2], flags=re.M)
    pages = [str(path.relative_to(ROOT / "docs")) for path in SHOWN if ROOT / "docs" in path.parents]
    assert sorted(name for name in placed if not name.startswith("repository/")) == sorted({*pages, "index.md"})


# Blocks of code -------------------------------------------------------------------------------------------------------


def test_every_block_holds() -> None:
    found = [(page, block) for page in SHOWN for block in blocks(page.read_text())]
    assert [(short(page), f"line {block.line}: {fault}") for page, block in found for fault in faults(block)] == []


def test_commands_within_lines_exist() -> None:
    named = [
        (f"{short(page)}:{line}", code)
        for page in SHOWN
        for line, code in code_spans(page.read_text())
        if code.startswith("flops-fit-ray ")
    ]
    found = [(place, code, fault) for place, code in named for fault in command_faults(code.split()[1:], values=False)]
    assert found == []


@pytest.mark.parametrize(
    ("language", "text", "wrong"),
    [
        ("", "x", "has no language"),
        ("yml", "a: 1", "yml is not checked"),
        ("yaml", "train: {warmup_steps: 3}", "write train.warmup_tokens"),
        ("yaml", "model: {sizes: [16, 24, 32]}\nbudgets: [1e9, 3e9]", ""),
        ("yaml", "budgets: {minutes: 30}", ""),
        ("sh", "flops-fit-ray plan sweep.yaml --slot 8", "No such option"),
        ("sh", "flops-fit-ray predict 1e21 a.csv | head -3\nx=3 flops-fit-ray plna", "there is no command plna"),
        ("sh", "flops-fit-ray compare a.csv", "compare needs"),
        ("sh", "flops-fit-ray status a b", "status takes no b"),
        ("sh", "flops-fit-ray run --set train.lrs=1", "no such key"),
        ("sh", "flops-fit-ray fit a.csv --at 1e21 --draws -1  # 'no", "is not in the range"),
        ("sh", "ray job submit -- python -m flops_fit_ray.run sweep.yaml \\\n  --nwe", "No such option"),
        ("sh", "make demo tset", "make has no target tset"),
        ("sh", "python -m tests.nothing", "there is no module tests.nothing"),
        ("python", "from flops_fit_ray import find_optimum", "flops_fit_ray has no find_optimum"),
        ("python", "import flops_fit_ray as f\nf.find_optimal(M, batchsize=3)", "has no argument batchsize"),
        ("python", "from flops_fit_ray import check\nr = {'lr': 1, 'lrs': 2}\ncheck(M, **r)", "has no argument lrs"),
        ("python", "from flops_fit_ray import find_optimal\nr = find_optimal(M)\nr.predicts(1)", "r has no predicts"),
        ("python", "from flops_fit_ray import fit_table\nfit_table('a.csv', at=[1], curve='cubic', pool=['x'])", ""),
        ("python", "x = (", "in line 1"),
        ("json", "{'a': 1}", "double quotes"),
    ],
)  # fmt: skip
def test_a_wrong_block_is_seen(language: str, text: str, wrong: str) -> None:
    found = list(faults(Block(1, language, text, "")))
    assert (wrong in found[0]) if wrong else found == []
    assert bool(language) == (list(faults(Block(1, language, text, "needs a cluster"))) == [])


def test_blocks_in_lists_and_their_reasons_are_found() -> None:
    text = (
        "1. a\n   ```sh\n   make\n   ```\n\n<!-- not run: needs a cluster -->\n\n```yaml\na: 1\n```\n\n```yaml\n```\n"
    )
    assert blocks(text) == [
        Block(2, "sh", "make\n", ""),
        Block(8, "yaml", "a: 1\n", "needs a cluster"),
        Block(12, "yaml", "\n", ""),
    ]
