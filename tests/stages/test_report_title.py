"""The page's title is that of the settings, as text, or names the families of the bases."""

from pathlib import Path

import pytest
from report_inputs import Inputs

from higgs_pipe.planning.model_types import V2, V3


def test_the_page_has_the_configured_title(tmp_path: Path) -> None:
    inputs = Inputs(tmp_path)
    inputs.title = "Ada & Ben"
    html = inputs.html()
    assert "<title>Ada &amp; Ben</title>" in html
    assert "<h1>Ada &amp; Ben</h1>" in html


@pytest.mark.parametrize(
    ("families", "num_experiments", "title"),
    [
        ([V2], 1, "Higgs Audio v2 adapter"),
        ([V3], 2, "Higgs TTS 3 adapters"),
        ([V2, V3], 2, "Higgs Audio v2 and Higgs TTS 3 adapters"),
    ],
)
def test_the_default_title_names_the_families_of_the_bases(
    tmp_path: Path, families: list[str], num_experiments: int, title: str
) -> None:
    inputs = Inputs(tmp_path)
    inputs.title, inputs.families = None, families
    for number in range(num_experiments):
        inputs.experiments[f"{number}"] = inputs.experiments["default"]
    del inputs.experiments["default"]
    assert f"<h1>{title}</h1>" in inputs.html()
