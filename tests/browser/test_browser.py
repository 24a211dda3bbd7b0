"""The report in a real browser: playing, sorting, no clipped content, no outside requests."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from devtools import BROWSER, Browser
from helpers import clips_page_of, rows_of_tones, tone
from matplotlib.image import imread
from report_inputs import Inputs

LIGHT_PAPER, DARK_PAPER = (0xFF, 0xFF, 0xFF), (0x14, 0x17, 0x1B)
LIGHT_BETTER = (0x11, 0x73, 0x4B)
PHONE, DESKTOP = 390, 1400  # pixels across

# Marks the window if it is taken for markup anywhere, inside an attribute or a script, too.
HOSTILE = """'"><img src=x onerror="window.hacked=1"><script>window.hacked=1</script>&lt;b&gt;"""

# What reaches beyond the window, unless it scrolls within its own box.
CUT_OFF = """[...document.querySelectorAll("body *")]
    .filter((e) => e.getBoundingClientRect().right > innerWidth + 1)
    .filter((e) => !e.closest(".hidden, .skip, svg"))
    .map((e) => e.outerHTML.slice(0, 80))"""
TEXTS = '[...document.querySelectorAll(".listen .text")].map((e) => e.textContent)'
PLAY_ALL = """Promise.all([...document.querySelectorAll("audio")].map(async (audio) => {
    await audio.play();
    audio.pause();
    return audio.duration;
}))"""
SORT_BY = """(key, table = 0) => {
    const order = document.querySelectorAll("select.order")[table];
    order.value = key;
    order.dispatchEvent(new Event("change"));
}"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on the PATH"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three experiments, three prompts; the adapters' takes last 2, 1.5 and 4 s (the cap)."""
    inputs = Inputs(tmp_path_factory.mktemp("page"))
    for name in ("rank-32", "a-long-name-for-an-experiment"):
        inputs.experiments[name] = inputs.experiment()
    lines = inputs.experiments["rank-32"]["train/metrics.jsonl"]
    lines.append({"step": 20, "alarm": "gradient_zero", "message": "a long message " * 20})
    inputs.html()
    return inputs.page


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with other recordings too, and two temperatures."""
    inputs = Inputs(tmp_path_factory.mktemp("both"))
    inputs.add_temperature(0.3)
    inputs.add_other()
    inputs.html()
    return inputs.page


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def clips_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of eight recordings, two of them rejected; one of these can be heard."""
    folder = tmp_path_factory.mktemp("clips")
    rows = rows_of_tones(folder, 8)
    rows[0] |= {"text": " ", "speaker": "a-speaker-whose-name-is-longer-than-a-phone-is-wide" * 2}
    rows[1]["audio"] = "a/folder/without/the/recording/that/the/manifest/names/here.wav"
    rows[2]["text"] = "A text of one long word: " + "donaudampfschifffahrt" * 8
    clips_page_of(folder, rows, validate={"max_rejected_fraction": 0.5})
    return folder / "data" / "index.html"


def hostile_report(folder: Path) -> Path:
    """A report whose texts, speakers, title, alarms and sentences are all markup."""
    inputs = Inputs(folder)
    inputs.title = f"A voice {HOSTILE}"
    inputs.texts = tuple(f"{HOSTILE} {number}" for number in range(len(inputs.texts)))
    inputs.validation["speakers"] = {HOSTILE: inputs.validation["speakers"]["ada"]}
    experiment = inputs.experiments["default"]
    experiment["eval/verdict.json"]["sentences"] = [HOSTILE]
    alarm = {"step": 20, "alarm": "gradient_zero", "message": HOSTILE}
    experiment["train/metrics.jsonl"].append(alarm)
    inputs.html()
    return inputs.page


def hostile_clips_page(folder: Path) -> Path:
    """A page of recordings whose names, ids, texts and speakers are all markup."""
    rows = rows_of_tones(folder, 4)
    for number, row in enumerate(rows):
        row |= {"text": f"{HOSTILE} {number}", "speaker": HOSTILE, "id": f"{HOSTILE}{number}"}
    rows[0]["audio"] = f"{HOSTILE.replace('/', '-')}.wav"
    rows[1] |= {"text": " ", "language": "<i>Klingon"}
    tone(folder / rows[0]["audio"], 1.0)
    clips_page_of(folder, rows, validate={"max_rejected_fraction": 0.5})
    return folder / "data" / "index.html"


def pixels_of(browser: Browser, page: Path, scheme: str) -> np.ndarray:
    """The page's pixels in a colour scheme, ``light`` or ``dark``: (height, width, 3) uint8."""
    browser.open(page, DESKTOP, 2400, scheme)
    picture = imread(browser.photograph(page.with_name("page.png")))
    return np.round(picture[..., :3] * 255).astype(np.uint8)


def num_pixels(pixels: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((pixels == np.array(colour, np.uint8)).all(axis=-1).sum())


def test_every_player_plays_its_recording(browser: Browser, page: Path) -> None:
    browser.open(page, DESKTOP)
    seconds = browser.evaluate(PLAY_ALL)
    # Reference; then recording, codec, base and the three adapters of each prompt.
    takes = [1.5, 1, 1, 4, 2, 2, 2, 1, 1, 4, 1.5, 1.5, 1.5, 1, 1, 4, 4, 4, 4]
    assert seconds == pytest.approx(takes, abs=0.02)


def test_one_recording_plays_at_a_time(browser: Browser, page: Path) -> None:
    browser.open(page, DESKTOP)
    playing = browser.evaluate(
        """(async () => {
            const [first, second] = document.querySelectorAll("audio");
            await first.play();
            await second.play();
            return [first.paused, second.paused];
        })()"""
    )
    assert playing == [True, False]


@pytest.mark.parametrize(
    ("key", "order"),
    [
        ("order", [0, 1, 2]),
        ("worst", [2, 0, 1]),
        ("length down", [2, 0, 1]),
        ("stop down", [2, 0, 1]),
    ],
)
def test_the_sort_control_reorders_the_prompts(
    browser: Browser, page: Path, key: str, order: list[int]
) -> None:
    browser.open(page, DESKTOP)
    texts = browser.evaluate(TEXTS)
    assert len(texts) == 3
    browser.evaluate(f"({SORT_BY})({key!r})")
    assert browser.evaluate(TEXTS) == [texts[place] for place in order]


def test_prompts_of_other_recordings_are_sorted_separately(browser: Browser, both: Path) -> None:
    browser.open(both, DESKTOP)
    texts = browser.evaluate(TEXTS)
    browser.evaluate(f"({SORT_BY})('worst', 1)")
    assert browser.evaluate(TEXTS) == texts[:3] + [texts[3 + place] for place in (2, 1, 0)]


@pytest.mark.parametrize("width", [PHONE, 768, DESKTOP])
@pytest.mark.parametrize("name", ["page", "both"])
def test_nothing_is_clipped_or_overflows(
    browser: Browser, request: pytest.FixtureRequest, name: str, width: int
) -> None:
    browser.open(request.getfixturevalue(name), width)
    assert browser.evaluate(CUT_OFF) == []
    assert browser.evaluate("document.documentElement.scrollWidth") == width


def test_on_a_phone_each_cell_shows_its_column_label(browser: Browser, page: Path) -> None:
    browser.open(page, PHONE)
    unnamed = """[...document.querySelectorAll("td:not(:empty)")]
        .filter((cell) => cell.textContent.trim() && !cell.dataset.label)
        .map((cell) => cell.outerHTML.slice(0, 80))"""
    assert browser.evaluate(unnamed) == []


def test_the_keyboard_reaches_sorting_and_players(browser: Browser, page: Path) -> None:
    browser.open(page, DESKTOP)
    reached = set()
    for _ in range(14):
        for kind in ("keyDown", "keyUp"):
            browser.send("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab")
        reached.add(browser.evaluate("document.activeElement.tagName"))
    assert {"A", "SELECT", "AUDIO"} <= reached


def test_players_charts_and_controls_have_accessible_names(browser: Browser, page: Path) -> None:
    browser.open(page, DESKTOP)
    unnamed = """[...document.querySelectorAll("audio, [role=img], select, [role=region]")]
        .filter((e) => !e.getAttribute("aria-label") && !(e.labels && e.labels.length))
        .map((e) => e.outerHTML.slice(0, 80))"""
    assert browser.evaluate(unnamed) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_contrast_is_at_least_4_5_to_1(browser: Browser, page: Path, scheme: str) -> None:
    """At least 4.5 to 1 (WCAG 2.2, 1.4.3), for each colour that text has."""
    browser.open(page, DESKTOP, scheme=scheme)
    colours = browser.evaluate(
        """[...new Set([...document.querySelectorAll("body *")]
            .filter((e) => e.textContent.trim() && !e.closest("svg, .hidden, script"))
            .map((e) => getComputedStyle(e))
            .flatMap((style) => ["--paper", "--tint"].map((paper) =>
                `${style.color} on ${style.getPropertyValue(paper)}`)))]"""
    )
    assert len(colours) >= 8
    for text, paper in (pair.split(" on ") for pair in colours):
        ink = [int(part) for part in text.removeprefix("rgb(").rstrip(")").split(", ")]
        ground = [int(paper.strip().lstrip("#")[i : i + 2], 16) for i in (0, 2, 4)]
        assert contrast(ink, ground) >= 4.5, (text, paper)


def contrast(first: list[int], second: list[int]) -> float:
    """The contrast ratio of two colours, as WCAG 2.2 defines it."""

    def luminance(colour: list[int]) -> float:
        parts = np.array(colour) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    darker, lighter = sorted((luminance(first), luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)


def test_a_browser_draws_the_page_with_its_colours(browser: Browser, page: Path) -> None:
    pixels = pixels_of(browser, page, "light")
    assert pixels.shape == (2400, DESKTOP, 3)
    assert len(np.unique(pixels @ np.array([1, 256, 65536]))) > 100
    assert num_pixels(pixels, LIGHT_PAPER) > pixels[..., 0].size / 2
    # The bar beside a good verdict: the style sheet is in force.
    assert num_pixels(pixels, LIGHT_BETTER) > 100


def test_a_reader_who_prefers_dark_gets_a_dark_page(browser: Browser, page: Path) -> None:
    pixels = pixels_of(browser, page, "dark")
    assert num_pixels(pixels, DARK_PAPER) > pixels[..., 0].size / 2
    assert num_pixels(pixels, LIGHT_PAPER) < pixels[..., 0].size / 1000


def test_the_page_makes_no_requests_and_logs_no_errors(browser: Browser, page: Path) -> None:
    browser.open(page, DESKTOP)
    browser.evaluate("new Promise((resolve) => setTimeout(resolve, 300))")
    outside = [url for url in browser.requests if not url.startswith("data:")]
    assert set(outside) == {page.as_uri()}
    assert browser.errors == []


def test_every_recording_on_the_clips_page_plays(browser: Browser, clips_page: Path) -> None:
    browser.open(clips_page, DESKTOP)
    seconds = browser.evaluate(PLAY_ALL)
    # The sample in the manifest's order, then the rejected row.
    assert seconds == pytest.approx([1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.0], abs=0.02)
    outside = [url for url in browser.requests if not url.startswith("data:")]
    assert set(outside) == {clips_page.as_uri()}
    assert browser.errors == []


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_nothing_on_the_clips_page_is_clipped_or_overflows(
    browser: Browser, clips_page: Path, width: int
) -> None:
    browser.open(clips_page, width)
    assert browser.evaluate(CUT_OFF) == []
    assert browser.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("make", [hostile_report, hostile_clips_page])
def test_markup_in_a_manifest_is_shown_as_text(
    browser: Browser, tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    browser.open(make(tmp_path), DESKTOP)
    browser.evaluate("new Promise((resolve) => setTimeout(resolve, 300))")
    assert browser.evaluate("window.hacked === undefined") is True
    assert browser.evaluate("document.querySelectorAll('img[src=x]').length") == 0
    assert browser.evaluate(f"document.body.textContent.includes({json.dumps(HOSTILE)})") is True
    assert [url for url in browser.requests if url.endswith("/x")] == []
