"""The documentation: the site builds, links and their anchors lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(ROOT / "config").glob("*.md"),
    *DOCS.rglob("*.md"),
    *(ROOT / "examples").rglob("*.md"),
]
FENCE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)\s]*)\)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does: a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


def test_the_site_has_a_page_for_each_documentation_file(site: Path) -> None:
    expected = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")}
    built = {path.relative_to(site) for path in site.rglob("*.html")}
    assert expected - {Path("decisions/README.html")} <= built
    assert Path("decisions/index.html") in built
    assert [*site.rglob("*.py"), *site.rglob("*.pyc")] == []


def test_the_site_loads_nothing_from_other_hosts(site: Path) -> None:
    fetched = re.compile(
        r'<(?:script|img|iframe)[^>]*src="(?:https?:)?//|<link[^>]*href="https?://'
    )
    assert [p.name for p in site.rglob("*.html") if fetched.search(p.read_text())] == []


def test_a_link_outside_the_docs_leads_to_a_copy_in_the_site(site: Path) -> None:
    assert 'href="files/higgs_pipe/higgs/family.py.txt"' in (site / "v3.html").read_text()
    copy = site / "files/higgs_pipe/higgs/family.py.txt"
    assert copy.read_text() == (ROOT / "higgs_pipe/higgs/family.py").read_text()


def test_code_with_pipes_is_shown_in_tables(site: Path) -> None:
    assert "<code>id|text</code>" in (site / "manifests.html").read_text()


def test_no_code_block_is_indented() -> None:
    assert [p.name for p in DOCS.rglob("*.md") if re.search(r"^ +```", p.read_text(), re.M)] == []


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def broken_links(page: Path) -> list[str]:
    found = []
    for link in LINK.findall(prose(page)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(f"{page.name}: {link}")
    return found


def test_every_link_leads_to_an_existing_file_and_heading() -> None:
    assert [link for page in PAGES for link in broken_links(page)] == []


def test_a_link_to_a_missing_heading_or_file_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Its `code`, and more\n[a](#its-code-and-more) [b](#gone) [c](page.md) [d](no.md)"
    )
    assert [link.split(": ")[1] for link in broken_links(page)] == ["#gone", "no.md"]


def test_the_index_of_decisions_lists_each_with_its_title() -> None:
    lines = (DOCS / "decisions/README.md").read_text().splitlines()
    expected = []
    for path in sorted((DOCS / "decisions").glob("0*.md")):
        number, title = path.read_text().splitlines()[0].removeprefix("# ").split(": ", 1)
        expected.append(f"- [{number}]({path.name}): {title[0].upper()}{title[1:]}")
    assert sorted(line for line in lines if line.startswith("- ")) == expected
