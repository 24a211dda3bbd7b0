"""The page's title is that of the settings, as text."""

from pathlib import Path

from report_inputs import Inputs


def test_the_title_of_the_page_is_that_of_the_settings(tmp_path: Path) -> None:
    inputs = Inputs(tmp_path)
    inputs.title = "Ada & Ben"
    html = inputs.html()
    assert "<title>Ada &amp; Ben</title>" in html
    assert "<h1>Ada &amp; Ben</h1>" in html
