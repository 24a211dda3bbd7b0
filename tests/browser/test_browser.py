"""The page in a real browser: it shows its numbers and is drawn in light and in dark."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from report_inputs import Inputs

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
LIGHT_PAPER, DARK_PAPER = (0xFF, 0xFF, 0xFF), (0x14, 0x17, 0x1B)
LIGHT_BETTER = (0x11, 0x73, 0x4B)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on the PATH"),
]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    inputs = Inputs(tmp_path)
    inputs.html()
    return inputs.page


def browse(page: Path, *options: str) -> str:
    """Open the page in a headless browser of its own and return what it prints."""
    quiet = ["background-networking", "component-update", "sync", "gpu"]
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--no-first-run",
        "--hide-scrollbars",
        *(f"--disable-{part}" for part in quiet),
        f"--user-data-dir={page.parent / 'profile'}",
        *options,
        page.as_uri(),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return done.stdout


def photograph(page: Path, scheme: str) -> np.ndarray:
    """The page's pixels in a colour scheme, ``light`` or ``dark``: (height, width, 3) uint8."""
    picture = page.with_name("page.png")
    setting = {"dark": 0, "light": 1}[scheme]
    browse(
        page,
        f"--screenshot={picture}",
        "--window-size=1100,2400",
        f"--blink-settings=preferredColorScheme={setting}",
    )
    return np.round(imread(picture)[..., :3] * 255).astype(np.uint8)


def num_pixels(pixels: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((pixels == np.array(colour, np.uint8)).all(axis=-1).sum())


def test_a_browser_shows_the_numbers_of_the_table(page: Path) -> None:
    dom = browse(page, "--dump-dom")
    for number in ("10.900", "8.650", "−2.250", "+56.7", "12,345"):
        assert f">{number}</td>" in dom


def test_a_browser_draws_the_page_with_its_colours(page: Path) -> None:
    pixels = photograph(page, "light")
    assert pixels.shape == (2400, 1100, 3)
    assert len(np.unique(pixels @ np.array([1, 256, 65536]))) > 100
    assert num_pixels(pixels, LIGHT_PAPER) > pixels[..., 0].size / 2
    # The bar beside a good verdict: the style sheet is in force.
    assert num_pixels(pixels, LIGHT_BETTER) > 100


def test_a_reader_who_prefers_dark_gets_a_dark_page(page: Path) -> None:
    pixels = photograph(page, "dark")
    assert num_pixels(pixels, DARK_PAPER) > pixels[..., 0].size / 2
    assert num_pixels(pixels, LIGHT_PAPER) == 0
