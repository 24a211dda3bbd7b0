"""What MkDocs does on top: a version in the footer, links out of docs/, bars in tables."""

import re
from pathlib import Path

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LEADS_UP = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)")
CODE = re.compile(r"<code>[^<]*</code>")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name the version on every page."""
    citation = yaml.safe_load((Path(config.docs_dir).parent / "CITATION.cff").read_text())
    config.copyright = f"{citation['title']} {citation['version']}, {citation['license']}"
    return config


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Copy files of the repository that a page links to into the site, as text.

    A link to a file that does not exist stays as it is, and MkDocs warns of it.
    """
    docs = Path(config.docs_dir)
    folder = (docs / page.file.src_uri).parent

    def link_to_copy(match: re.Match[str]) -> str:
        target = (folder / match[1]).resolve()
        if target.is_relative_to(docs) or not target.is_file():
            return match[0]
        copy = f"files/{target.relative_to(docs.parent).as_posix()}.txt"
        if copy not in files.src_uris:
            files.append(File.generated(config, copy, abs_src_path=str(target)))
        return f"]({'../' * page.file.src_uri.count('/')}{copy}"

    return LEADS_UP.sub(link_to_copy, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    r"""Write ``\|``, which GitHub needs in code within a table, as a bar."""
    return CODE.sub(lambda match: match[0].replace("\\|", "|"), html)
