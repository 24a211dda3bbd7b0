"""The model card shows what users wrote as text, whatever markup is in it."""

import html

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from higgs_pipe.publishing.card import as_python, as_text

MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def one_line(text: str) -> str:
    visible = (c if c.isprintable() or c.isspace() else "\ufffd" for c in text)
    return " ".join("".join(visible).split())


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1))
@example("<img src=x onerror=alert(1)>\n# heading")
@example("1990. a | b ~~c~~ *d* &amp; \\* [e](f) `g`")
@example("- item")
@example("==")
@example("10) item")
def test_any_text_is_shown_literally_on_one_line(text: str) -> None:
    expected = html.escape(one_line(text), quote=False)
    shown = MARKDOWN.render(as_text(text)).replace("&quot;", '"')
    assert shown == (f"<p>{expected}</p>\n" if expected else "")
    cell = MARKDOWN.render(f"| a |\n|---|\n| {as_text(text)} |").replace("&quot;", '"')
    assert f"<td>{expected}</td>" in cell


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_a_python_literal_evaluates_to_the_text(text: str) -> None:
    assert eval(as_python(text)) == text  # a literal of our own making


@pytest.mark.parametrize(
    ("address", "written"),
    [
        ("http://ab.org", r"http\://ab\.org"),
        ("www.ab.org", r"www\.ab\.org"),
        ("a@ab.org", r"a\@ab\.org"),
    ],
)
def test_urls_and_email_addresses_do_not_become_links(address: str, written: str) -> None:
    """GitHub's Markdown links them without any markup."""
    assert as_text(address) == written
