"""Details of the report and its charts: order, colours, markers, and the source of each number."""

import re
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import numpy as np
import pytest
from helpers import ROOT
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from report_inputs import Inputs, TextOfPage, evaluation_line, group_loss, rows, words

from higgs_pipe.config.settings import LoraSettings
from higgs_pipe.config.stages import TrainStage
from higgs_pipe.data.clips.results import ValidationSummary
from higgs_pipe.data.packing.results import PackingSummary
from higgs_pipe.data.tables import read_table, write_table
from higgs_pipe.listening import verdict
from higgs_pipe.listening.intervals import Difference, Estimate
from higgs_pipe.listening.spoken import GENERATED, Generation, Voice, VoiceTotals
from higgs_pipe.reporting import audio, charts, experiments, measures, other, pages, prompts
from higgs_pipe.reporting.experiments import COLOURS
from higgs_pipe.reporting.shares import largest


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    return Inputs(tmp_path)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that charts are made of."""
    figures: list[Figure] = []
    render = charts._as_chart

    def keep(figure: Figure, title: str, description: str) -> charts.Chart:
        figures.append(figure)
        return render(figure, title, description)

    monkeypatch.setattr(charts, "_as_chart", keep)
    return figures


# --- Charts ---------------------------------------------------------------------------------------


def test_each_experiment_has_its_own_colour_and_markers(drawn: list[Figure]) -> None:
    experiments: Any = []
    for name, colour, shift in (("a", COLOURS[0], 0.0), ("b", COLOURS[1], 5.0)):
        training = [SimpleNamespace(step=s, loss=9.0 - s / 10 + shift) for s in (10, 20)]
        held_out = [SimpleNamespace(step=s, eval_loss=8.0 + shift) for s in (0, 20)]
        samples, alarms = [SimpleNamespace(step=20)], [SimpleNamespace(step=10 + shift)]
        log = SimpleNamespace(training=training, held_out=held_out, samples=samples, alarms=alarms)
        experiments.append(SimpleNamespace(name=name, colour=colour, log=log))
    charts.draw_loss("Loss", "loss", experiments)
    axes: Any = drawn[0].axes[0]
    lines = [(to_hex(str(line.get_color())), np.array(line.get_data())) for line in axes.lines]
    found = [(colour, xy.tolist()) for colour, xy in lines]
    for colour, shift in ((COLOURS[0], 0.0), (COLOURS[1], 5.0)):
        own = [xy for at, xy in found if at == colour]
        assert own[0] == [[10, 20], [8 + shift, 7 + shift]]
        assert own[1] == [[0, 20], [8 + shift, 8 + shift]]
        assert own[2][0] == [20, 20]  # samples
        assert own[3][0] == [10 + shift]  # alarms


def test_a_measure_is_drawn_with_its_bounds_and_rejected_rows_separate(drawn: list[Figure]) -> None:
    accepted, rejected = np.linspace(20, 40, 1000), np.array([5.0, 1e6])
    charts.draw_measure("snr_db", accepted, rejected, bounds=[10.0])
    axes: Any = drawn[0].axes[0]
    bars: dict[str, list[Any]] = {}
    for bar in axes.patches:
        bars.setdefault(to_hex(bar.get_facecolor()), []).append(bar)
    heights = {colour: sum(b.get_height() for b in part) for colour, part in bars.items()}
    assert heights == {charts.ACCEPTED_COLOUR: 1000, charts.REJECTED_COLOUR: 2}
    of_rejected = [b.get_height() for b in bars[charts.REJECTED_COLOUR]]
    assert (of_rejected[0], of_rejected[-1]) == (1, 1)  # what lies beyond the axis
    first, last = bars[charts.ACCEPTED_COLOUR][0], bars[charts.ACCEPTED_COLOUR][-1]
    assert first.get_x() == pytest.approx(10)  # the bound is on the axis
    assert last.get_x() + last.get_width() == pytest.approx(40, abs=0.2)
    [bound] = axes.lines
    assert list(bound.get_xdata()) == [10, 10]


def test_the_length_histogram_counts_by_split_up_to_the_longest(drawn: list[Figure]) -> None:
    """Each of the 24 bars is a second wide."""
    chart = charts.draw_durations({"train": [0.5, 1.5, 1.75], "held out": [24.0, 1.25]})
    axes: Any = drawn[0].axes[0]
    bars: dict[str, list[Any]] = {}
    for bar in axes.patches:
        bars.setdefault(to_hex(bar.get_facecolor()), []).append(bar)
    assert list(bars) == list(COLOURS[:2])
    for part, held in zip(bars.values(), ({0: 1, 1: 2}, {1: 1, 23: 1}), strict=True):
        assert [bar.get_width() for bar in part] == pytest.approx([1] * 24)
        assert {i: bar.get_height() for i, bar in enumerate(part) if bar.get_height()} == held
    assert bars[COLOURS[1]][1].get_y() == 2  # on those of training
    assert all(tick.is_integer() for tick in axes.get_yticks())  # there is no half clip
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train", "held out"]
    assert "3 train, 2 held out clips" in chart.description
    assert (chart.width, chart.height) == (346, 216)  # 4.8 by 3 inches of 72 points


def test_a_constant_measure_is_drawn_and_its_median_is_over_all_rows(
    drawn: list[Figure],
) -> None:
    charts.draw_measure("stoi", np.array([5.0, 5.0]), np.array([]), bounds=[])
    bars: Any = drawn[0].axes[0].patches
    assert bars[0].get_width() == pytest.approx(1 / 24)
    chart = charts.draw_measure("stoi", np.array([1.0, 2.0]), np.array([4.0] * 3), bounds=[1, 3.5])
    axes: Any = drawn[1].axes[0]
    assert [list(line.get_xdata()) for line in axes.lines] == [[1, 1], [3.5, 3.5]]
    last = axes.patches[-1]
    assert last.get_x() + last.get_width() == pytest.approx(4)
    assert "2 accepted rows, median 4 over all; 3 rejected" in chart.description


@pytest.mark.parametrize(("num_points", "every"), [(20, 1), (40, 2), (41, 3)])
def test_a_loss_of_0_is_drawn_and_a_single_point_has_a_marker(
    drawn: list[Figure], num_points: int, every: int
) -> None:
    training = [SimpleNamespace(step=10, loss=0.0)]
    held_out = [SimpleNamespace(step=step, eval_loss=1.0) for step in range(num_points)]
    alarms = [SimpleNamespace(step=10)]
    log = SimpleNamespace(training=training, held_out=held_out, samples=[], alarms=alarms)
    experiment: Any = SimpleNamespace(name="a", colour=COLOURS[0], log=log)
    charts.draw_loss("Loss", "loss", [experiment])
    lines: Any = drawn[0].axes[0].lines
    assert (list(lines[0].get_ydata()), lines[0].get_marker()) == ([0], "o")
    assert lines[1].get_markevery() == every  # 20 marks at most
    assert 0 < lines[2].get_ydata()[0] < 0.1  # of the height, at the bottom


def test_steps_have_whole_ticks_and_seconds_and_hours_need_not(drawn: list[Figure]) -> None:
    training = [SimpleNamespace(step=step, loss=1.0) for step in (1, 2)]
    held_out = [SimpleNamespace(step=step, eval_loss=1.0) for step in (0, 2)]
    log = SimpleNamespace(training=training, held_out=held_out, samples=[], alarms=[])
    experiment: Any = SimpleNamespace(name="a", colour=COLOURS[0], log=log)
    charts.draw_loss("Loss", "loss", [experiment])
    charts.draw_durations({"train": [0.5, 2.0]})
    charts.draw_hours("Hours", {"ada": 2.0})
    axes: list[Any] = [figure.axes[0] for figure in drawn]
    are_whole = [all(float(tick).is_integer() for tick in each.get_xticks()) for each in axes]
    assert are_whole == [True, False, False]
    units = ["optimizer step", "length of a clip, seconds", "hours"]
    assert [each.get_xlabel() for each in axes] == units


def test_long_names_are_truncated_and_dollar_signs_are_escaped(drawn: list[Figure]) -> None:
    charts.draw_hours("Hours", {"a" * 18: 2.0, "b" * 19: 1.0, "$c$": 0.5})
    labels: Any = drawn[0].axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == ["a" * 18, "b" * 17 + "…", r"\$c\$"]


def test_a_waveform_is_drawn_from_its_peaks() -> None:
    """Bars around y = 16, at most 15 high on each side, at least 0.5."""
    assert audio.outline(np.array([0, 0.5, -1, 3], np.float32), 4) == (
        "M0.5 15.5v1M1.5 8.5v15M2.5 1v30M3.5 1v30"
    )
    for longest, rate_hz, num_bars in ((None, 24_000, 96), (2.0, 24_000, 48), (2.0, 16_000, 48)):
        player = audio.make_player(np.zeros(rate_hz, np.float32), rate_hz, longest)
        assert (player.seconds, player.outline.count("M")) == (1, num_bars)


def test_hours_are_bars_in_the_given_order_from_the_top(drawn: list[Figure]) -> None:
    charts.draw_hours("Hours", {"ada": 3.0, "ben": 1.0})
    axes: Any = drawn[0].axes[0]
    assert [bar.get_width() for bar in axes.patches] == [3, 1]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ada", "ben"]
    bottom, top = axes.get_ylim()
    assert bottom > top


def test_the_speakers_with_the_most_hours_come_first() -> None:
    shares: Any = {name: SimpleNamespace(hours=hours) for name, hours in (("a", 1.0), ("b", 2.0))}
    assert list(largest(shares)) == ["b", "a"]


# --- Listening ------------------------------------------------------------------------------------


def test_prompts_are_sorted_by_their_worst_adapter(inputs: Inputs) -> None:
    inputs.experiments["other"] = inputs.experiment()
    inputs.write()
    for name, similarity, seconds in (("default", 0.9, 1.0), ("other", 0.25, 8.0)):
        table = inputs.folder / f"experiments/{name}/eval/generation.parquet"
        spoken = read_table(table, GENERATED).to_pylist()
        heard = {"similarity_to_recording": similarity, "duration_seconds": seconds}
        changed = [row | heard if row["voice"] == "adapter" else row for row in spoken]
        write_table(table, GENERATED, changed)
    inputs.run()
    page = inputs.page.read_text()
    assert page.count('data-length="3.0"') == 3  # 8 s are three octaves above the recording's
    assert page.count('data-voice="0.75"') == 3


def line_played(
    monkeypatch: pytest.MonkeyPatch, adapters: dict[str, float], bases: dict[str, float]
) -> list[tuple[str, float | None]]:
    """The files that a prompt's players read, with the lengths of their axes.

    The arguments have the seconds of the experiments' takes, and of those of their own bases.
    """
    played: list[tuple[str, float | None]] = []
    monkeypatch.setattr(
        prompts, "read_player", lambda path, longest, rule: played.append((str(path), longest))
    )
    row: dict[str, Any] = {"text": "t", "speaker": None, "language": None}
    row |= {"task": "speech", "reference": "r", "has_stopped": None}
    row |= dict.fromkeys(("num_words", "transcript", "similarity_to_recording", "dnsmos"))
    row |= {"silence_share": 0.0, "longest_silence_seconds": 0.0, "repeated_frame_share": 0.0}

    def take(voice: str, seconds: float) -> dict[str, Any]:
        return row | {"sample": voice, "duration_seconds": seconds}

    files: Any = {name: SimpleNamespace(samples=Path(name)) for name in adapters}
    prompts._line(
        {v: take(v, s) for v, s in (("recording", 1.0), ("codec", 1.0), ("base", 4.0))},
        {name: take("base", seconds) for name, seconds in bases.items()},
        {name: take("adapter", seconds) for name, seconds in adapters.items()},
        files,
        rank=1,
    )
    return played


@pytest.mark.parametrize(("adapter_seconds", "longest"), [(2.0, 4.0), (5.0, 5.0)])
def test_waveforms_of_a_row_share_one_time_axis(
    monkeypatch: pytest.MonkeyPatch, adapter_seconds: float, longest: float
) -> None:
    played = line_played(monkeypatch, adapters={"default": adapter_seconds}, bases={})
    assert [axis for _, axis in played] == [longest] * 4 + [None]  # the reference has its own


def test_each_take_is_played_from_the_samples_of_its_own_experiment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    played = line_played(monkeypatch, adapters={"a": 1.0, "b": 1.0}, bases={"b": 6.0})
    of_first = ["a/recording", "a/codec", "a/base", "a/adapter"]
    assert [path for path, _ in played] == [*of_first, "b/base", "b/adapter", "a/r"]
    assert {axis for _, axis in played} == {6.0, None}


def test_the_page_names_the_temperature_and_the_clustering(inputs: Inputs) -> None:
    experiment = inputs.experiments["default"]
    experiment["eval/verdict.json"]["clustered_by"] = "speaker"
    inputs.write()
    table = inputs.folder / "experiments/default/eval/generation.parquet"
    spoken = read_table(table, GENERATED).to_pylist()
    changed = [row | {"temperature": row["temperature"] and 0.7} for row in spoken]
    write_table(table, GENERATED, changed)
    inputs.run()
    page = words(inputs.page.read_text())
    assert "at temperature 0.7." in page
    assert "clustered by speaker" in page


def drawn_row(seconds: float, **measured: Any) -> dict[str, Any]:
    row = dict.fromkeys(("num_words", "num_word_errors", "similarity_to_recording"))
    row |= {"has_stopped": True, "longest_silence_seconds": 0.0, "silence_share": 0.0}
    return row | {"duration_seconds": seconds} | measured


def test_the_sort_keys_of_a_prompt_come_from_its_worst_takes() -> None:
    """Two adapters: half the length is an octave, 3 of 4 words are wrong, 2 s of silence."""
    first = drawn_row(0.5, num_words=4, num_word_errors=3, similarity_to_recording=0.75)
    second = drawn_row(1.0, num_words=8, num_word_errors=4, similarity_to_recording=0.5)
    second |= {"has_stopped": False, "longest_silence_seconds": 2.0, "silence_share": 0.25}
    found = prompts._sort_values([first, second], drawn_row(1.0))
    assert found == {"stop": 1, "length": 1, "silence": 2, "words": 0.75, "voice": 0.5}
    for measure, key in (("num_words", "words"), ("similarity_to_recording", "voice")):
        assert key not in prompts._sort_values([first, second | {measure: None}], drawn_row(1.0))


def test_prompts_are_ranked_by_the_worst_take_of_any_adapter() -> None:
    """The second adapter never stops at `a`, and misspeaks `b`; `c` is too long, `d` is right."""
    recording = {"recording": drawn_row(1.0)}
    right = drawn_row(1.0, num_words=4, num_word_errors=0)
    tables: Any = {
        "first": {name: recording | {"adapter": right} for name in "dcba"},
        "second": {
            "d": {"adapter": right},
            "c": {"adapter": right | {"duration_seconds": 3.0}},
            "b": {"adapter": right | {"num_word_errors": 1}},
            "a": {"adapter": right | {"has_stopped": False}},
        },
    }
    assert prompts._ranks(tables) == {"a": 1, "b": 2, "c": 3, "d": 4}


def test_a_recording_has_no_similarity_to_itself() -> None:
    recording: dict[str, Any] = drawn_row(1.0, similarity_to_recording=1.0)
    recording |= {"repeated_frame_share": 0.0, "transcript": None, "dnsmos": None}
    labels = [fact.label for fact in prompts._facts(recording, recording)]
    assert "voice" not in labels
    assert "voice" in [fact.label for fact in prompts._facts(dict(recording), recording)]


def test_a_length_far_beyond_the_recordings_has_plain_digits() -> None:
    row = drawn_row(124.0, repeated_frame_share=0.0, transcript=None, dnsmos=None)
    assert prompts._facts(row, drawn_row(1.0))[0].value == "124.0 s (120 ×)"


# --- Other recordings, measures, training ---------------------------------------------------------


def test_unspoken_prompts_of_other_recordings_are_counted_in_their_section(inputs: Inputs) -> None:
    inputs.add_other()
    inputs.experiments["default"]["eval/other/generation.json"]["num_too_long"] = 7
    page = inputs.html()
    assert "eval.max_seconds" not in words(page[: page.index('id="other"')])
    assert re.search(r"eval\.max_seconds = 10\b[^.:]*: 7\.", words(page))


def test_a_clip_rejected_for_two_bases_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = {"a": ["x", "y"], "b": ["y", "z"]}

    def read(path: Path) -> Any:
        return SimpleNamespace(
            rejected=[
                SimpleNamespace(clip_id=clip, reason="too_many_tokens")
                for clip in samples[path.name]
            ]
        )

    validation: Any = SimpleNamespace(num_rejected_by_reason={"silent": 2})
    monkeypatch.setattr(PackingSummary, "read", read)
    monkeypatch.setattr(ValidationSummary, "read", lambda path: validation)
    nothing: Any = None
    found = other.read_other(tmp_path, [Path("a"), Path("b")], nothing)
    assert found.num_left_out == {"silent": 2, "too_many_tokens": 3}


def test_notable_facts_about_the_recordings_are_counted(inputs: Inputs) -> None:
    inputs.validation |= {
        **{"num_clips_without_speaker": 31, "num_clips_without_language": 32},
        **{"num_references": 33, "duplicates": [["a", "b"], ["c", "d"]]},
        "left_out": {"no_text": {"num_files": 34, "first_files": ["a.wav"]}},
        "manifest_notes": [f"Note {number}." for number in range(21)],
        "shared_scene": "A hall.",
        "speakers_with_one_clip": {"speakers": ["dora"], "message": "cloning falls back"},
    }
    page = inputs.html()
    listed = [words(line) for line in re.findall("<li>(.*?)</li>", page, re.DOTALL)]
    for start, end in (
        ("Clips without a speaker", ": 31."),
        ("Clips without a language", ": 32."),
        ("Recordings used only as reference voices", ": 33."),
        ("Recordings listed more than once", ": 2."),
        ("Files left out (no text)", ": 34."),
        ("All clips have the scene “A hall.”", "to the adapter."),
        ("Speakers with only one clip: dora;", "cloning falls back."),
        ("Note 19.", ""),
    ):
        [found] = [line for line in listed if line.startswith(start)]
        assert found.endswith(end)
    assert "Note 20." not in listed
    speakers, languages = page.index("<h3>Speakers"), page.index("<h3>Languages")
    assert speakers < page.index('<th scope="row">ada</th><td>80', speakers) < languages
    assert page.index('<th scope="row">de</th><td>40', languages)


def test_packing_counts_are_shown_for_their_own_split(inputs: Inputs) -> None:
    counts = [*("num_samples", "num_rows", "num_tokens", "num_audio_frames")]
    counts += ["num_text_labels", "num_audio_labels"]
    for first, split in ((100, "train"), (200, "eval")):
        numbered: dict[str, Any] = {key: first + number for number, key in enumerate(counts)}
        numbered |= {"fill": first / 1000, "audio_seconds": 36.0 * first}
        numbered["tasks"] = {f"task{first}": first}
        inputs.packing[split] = inputs.packing[split] | numbered
    page = inputs.html()
    page = page[page.index("<h2>Packing") :]
    found = [cells for cells in TextOfPage(page).rows[1:] if len(cells) == 3]
    assert [cells[1:] for cells in found[:6]] == [[f"{100 + n}", f"{200 + n}"] for n in range(6)]
    assert [cells[1:] for cells in found[6:9]] == [
        ["10.0", "20.0"],
        ["1.000", "2.000"],
        ["task100 100", "task200 200"],
    ]


# Of each line: total, difference and unit.
SPEECH_LINES = {
    "Stops by itself": ("stop_rate", "stop_rate", "%"),
    "Runs away (to the cap, or over twice as long)": ("runaway_rate", "runaway_rate", "%"),
    "Length relative to the recording": ("duration_ratio", "duration_error", "×"),
    "Silence": ("silence_share", "silence_error", "%"),
    "Longest silence": ("longest_silence_seconds", "longest_silence_excess", "s"),
    "Repeated frames": ("repeated_frame_share", "repeated_frame_excess", "%"),
    "Distance of the codes from the recordings'": ("code_distance", "code_distance", ""),
    "Word error rate": ("word_error_rate", "word_error_rate", "%"),
    "Character error rate": ("character_error_rate", "character_error_rate", "%"),
    "Similarity to the recording's voice": ("speaker_similarity", "speaker_similarity", ""),
    "Similarity to the reference's voice": (*["speaker_similarity_to_reference"] * 2, ""),
    "Similarity to the speaker's other clips": (*["speaker_similarity_to_others"] * 2, ""),
    "Quality (DNSMOS)": ("dnsmos", "quality_shortfall", ""),
}


def test_each_speech_measure_has_its_own_totals_and_difference() -> None:
    def numbered(kind: Any, start: float, column: int) -> dict[str, Any]:
        """Of each name by its line: 0.01, 0.02, ... more than ``start``."""
        names = [parts[column] for parts in SPEECH_LINES.values()]
        extra: dict[str, Any] = {"low": None, "high": None, "num_clips": 9, "num_clusters": 9}
        extra |= {"p_value": None} if kind is Difference else {}
        return {name: kind(value=start + n / 100, **extra) for n, name in enumerate(names, 1)}

    drawn: list[tuple[Voice, float | None, float]] = [
        *(("recording", None, 0.1), ("codec", None, 0.2)),
        *(("base", 1.0, 0.3), ("adapter", 1.0, 0.4)),
    ]
    voices = [
        VoiceTotals(voice=voice, temperature=temperature, measures=numbered(Estimate, start, 0))
        for voice, temperature, start in drawn
    ]
    settings: Any = {"num_prompts": 9, "num_too_long": 0, "max_seconds": 1.0, "seed": 0}
    spoken = Generation(**settings, speech_models={}, voices=voices, differences=[])
    judged: Any = {
        name: SimpleNamespace(outcome=f"outcome of {name}", leads=False, difference=change)
        for name, change in numbered(Difference, 0.5, 1).items()
    }
    found = {line.label: line for line in measures._speech_lines(spoken, judged)}
    assert list(found) == list(SPEECH_LINES)
    for number, (label, (_, compared, unit)) in enumerate(SPEECH_LINES.items(), 1):
        line, is_share = found[label], unit == "%"
        totals = [start + number / 100 for start in (0.1, 0.2, 0.3, 0.4)]
        texts = [f"{100 * t:.1f} %" if is_share else f"{t:.2f} {unit}".rstrip() for t in totals]
        assert [line.recording, line.codec, line.base, line.adapter] == texts
        difference = 0.5 + number / 100
        assert line.difference == (f"+{100 * difference:.1f}" if is_share else f"+{difference:.2f}")
        assert line.outcome == f"outcome of {compared}"


def test_each_measure_of_the_verdict_is_in_the_table() -> None:
    of_losses = {"audio_loss", "stop_loss", "text_loss", "text_use"}
    of_speech = {compared for _, compared, _ in SPEECH_LINES.values()}
    assert measures.DIFFERENCE_NOTES.keys() == {
        compared for total, compared, _ in SPEECH_LINES.values() if compared != total
    }
    assert of_losses | of_speech == {measure.name for measure in verdict.MEASURES}


def test_each_outcome_has_its_colour_class() -> None:
    words_of = {"better": ["better", "passed"], "worse": ["worse", "failed"]}
    words_of |= {"caution": ["no evidence"], "soft": ["not measured"]}
    for tone, outcomes in words_of.items():
        assert {measures.tone(outcome) for outcome in outcomes} == {tone}


def test_a_difference_has_a_sign_unless_it_rounds_to_zero() -> None:
    minus = "\N{MINUS SIGN}"
    found = [measures.signed(value, 2) for value in (1.5, -1.5, 0.004, -0.004)]
    assert found == ["+1.50", f"{minus}1.50", "0.00", "0.00"]


def test_a_setting_has_its_description_and_an_empty_list_is_shown() -> None:
    found = experiments._descriptions(TrainStage)
    assert found["train.lora.r"] == LoraSettings.model_fields["r"].description
    assert experiments._flatten({"lora": {"parts": [], "r": 4}}) == {
        "lora.parts": "[]",
        "lora.r": "4",
    }


def test_text_use_is_shown_with_its_interval(inputs: Inputs) -> None:
    found = [row for row in TextOfPage(inputs.html()).rows if row[0].startswith("Use of the text")]
    assert [row[1:] for row in found] == [["", "", "", "", "+0.500 +0.400 to +0.600", "better"]]


def test_the_kept_adapter_is_the_one_training_recorded(inputs: Inputs) -> None:
    lines = inputs.experiments["default"]["train/metrics.jsonl"]
    lines.append({"step": 40, "kept_step": 40, "seconds": 90.0})  # by its samples, not its loss
    assert re.search(r"default keeps [^.]* step 40, [^.]* 8\.650\.", words(inputs.html()))


def test_steps_after_the_last_logged_line_are_counted(inputs: Inputs) -> None:
    lines = inputs.experiments["default"]["train/metrics.jsonl"]
    lines.append(evaluation_line(44, 8.4))  # log_steps is 10
    assert rows(inputs.html(), "default")[-1][0] == "44"


def test_a_report_from_modified_code_names_its_commit(inputs: Inputs) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    inputs.experiments["default"]["train/run.json"]["git_commit"] = f"{commit}-dirty"
    assert f"git checkout {commit}\n" in inputs.html()


def test_the_speak_command_has_the_folder_of_these_results(inputs: Inputs) -> None:
    inputs.folder /= "my results"
    assert f"--adapter '{inputs.folder}/adapters/default' --text" in unescape(inputs.html())


def test_the_make_commands_of_the_report_are_makefile_targets(inputs: Inputs) -> None:
    targets = re.findall(r"^make (\w+)$", inputs.html(), re.MULTILINE)
    phony = re.findall(r"^\.PHONY: (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets
    assert set(targets) <= set(phony)


def test_each_experiment_has_its_own_results(inputs: Inputs) -> None:
    second = inputs.experiments["second"] = inputs.experiment(eval_loss=8.25, eval_audio_loss=7.5)
    second["train/run.json"] |= {"started_at": "2026-11-28T09:05:59+00:00", "machine": "a laptop"}
    second["train/config.json"]["base_model"] = "acme/other"
    lines = second["train/metrics.jsonl"]
    lines[-1] |= {"tokens_per_second": 2000, "audio_seconds_per_second": 20, "peak_memory_gb": 7.5}
    lines.append({"step": 33, "alarm": "loss_rises", "message": "Look."})
    checks = [{"name": "heads", "status": "failed", "found": "only one"}]
    second["train/preflight.json"]["checks"] = checks
    second["eval/breakdown.json"]["groups"] = [group_loss("speaker", "dora", 7.3)]
    inputs.add_other()
    second["eval/other/verdict.json"] |= {"overall": "better", "sentences": ["Kept.", "All."]}
    second["eval/other/metrics.json"]["adapter"]["eval_loss"] = 11.5
    second["eval/other/breakdown.json"]["groups"] = [group_loss("speaker", "emil", 7.3)]
    page = inputs.html()
    text = words(page)
    assert "Base model resources/tiny-higgs, acme/other Trained 2026-11-26 14:02 UTC" in text
    assert ", 2026-11-28 09:05 UTC Machine 2 x NVIDIA H100, a laptop Training time" in text
    losses = ["8.650", "8.250", "11.900", "11.500"]
    assert [cells[3] for cells in rows(page, "Total")] == losses
    assert [len(rows(page, name)) for name in ("dora", "emil")] == [1, 1]
    assert rows(page, "second")[-1] == ["40", "1.50", "2,000", "20", "7.5"]
    assert rows(page, "heads") == [["failed", "only one"]]
    assert rows(page, "loss rises") == [["33", "Look."]]
    assert "Forgetting: Kept. See below" in text
    assert "second: Kept. All." in text
    assert "Forgetting: It has forgotten. See below" in text
    for name in ("default", "second"):
        assert f"--adapter {inputs.folder}/adapters/{name} --text" in page


def test_every_experiment_is_in_the_legend_with_its_colour(inputs: Inputs) -> None:
    inputs.experiments["second"] = inputs.experiment()
    page = inputs.html()
    legend = page[page.index('class="legend"') : page.index('class="charts"')]
    found = re.findall(r'stroke="(#\w+)"[^>]*/></svg>(\w+), training', legend)
    assert found == [(COLOURS[0], "default"), (COLOURS[1], "second")]


def test_experiments_rank_by_verdict_before_loss_and_colours_repeat(inputs: Inputs) -> None:
    inputs.write()
    found = experiments.read_experiments(inputs.folder / "experiments", ["default"] * 7)
    assert [each.colour for each in found] == [*COLOURS, COLOURS[0]]
    judged: Any = [
        SimpleNamespace(
            held_out=SimpleNamespace(
                verdict=SimpleNamespace(overall=overall),
                metrics=SimpleNamespace(adapter=SimpleNamespace(eval_audio_loss=loss)),
            )
        )
        for overall, loss in (("worse", 1), ("no evidence", 2), ("better", 4), ("better", 3))
    ]
    assert experiments.ranked(judged) == [judged[number] for number in (3, 2, 1, 0)]


def test_names_beyond_the_first_20_in_a_sentence_are_counted() -> None:
    names = [f"s{number}" for number in range(23)]
    assert pages._first_few(names[:20]) == ", ".join(names[:20])
    assert pages._first_few(names) == f"{', '.join(names[:20])} and 3 more"


def test_a_value_that_a_page_lacks_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="lacking"):
        pages._environment().from_string("{{ lacking }}").render()
