"""Input files of the report as plain values: a healthy run of one experiment."""

import copy
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from helpers import tone

from higgs_pipe import report
from higgs_pipe.data.specs import CLIPS, Column, TableSpec
from higgs_pipe.data.tables import write_table
from higgs_pipe.listening.spoken import GENERATED
from higgs_pipe.planning.model_types import V2

BASE = {
    "eval_loss": 10.9,
    "eval_text_loss": 2.0,
    "eval_audio_loss": 8.9,
    "eval_audio_loss_codebook_0": 8.7,
    "eval_audio_loss_codebook_1": 9.1,
    "eval_stop_loss": 7.25,
    "eval_text_accuracy": 0.333,
    "eval_audio_accuracy_codebook_0": 0.001,
    "eval_audio_accuracy_codebook_1": 0.002,
    "num_clips": 24,
    "num_text_labels": 72,
    "num_audio_labels": 12345,
}
ADAPTER = BASE | {
    "eval_loss": 8.65,
    "eval_text_loss": 1.25,
    "eval_audio_loss": 7.4,
    "eval_audio_loss_codebook_0": 6.5,
    "eval_audio_loss_codebook_1": 8.3,
    "eval_stop_loss": 3.5,
    "eval_text_accuracy": 0.9,
    "eval_audio_accuracy_codebook_0": 0.051,
    "eval_audio_accuracy_codebook_1": 0.002,
}
SPLIT = {
    "num_rows": 6,
    "num_samples": 96,
    "tasks": {"cloning": 41, "speech": 55},
    "audio_seconds": 1800.0,
    "num_tokens": 11900,
    "num_audio_frames": 9000,
    "num_text_labels": 288,
    "num_audio_labels": 70000,
    "fill": 0.968,
}


def share(num_clips: int, hours: float, **counts: int) -> dict[str, Any]:
    return {"num_clips": num_clips, "seconds": 3600 * hours, "hours": hours, **counts}


SPEAKERS = {
    "ada": share(80, 0.4, num_train_clips=64, num_eval_clips=16),
    "ben": share(40, 0.2, num_train_clips=32, num_eval_clips=8),
}


def evaluation_line(step: int, loss: float) -> dict[str, float]:
    losses = {"loss": loss, "text_loss": 2.0, "audio_loss": loss - 2, "stop_loss": 7.0}
    return {"step": step} | {f"eval_{key}": value for key, value in losses.items()}


def training_line(step: int, loss: float) -> dict[str, float]:
    losses = {"loss": loss, "text_loss": 2, "audio_loss": loss - 2, "stop_loss": 7}
    speed = {"tokens_per_second": 15788.7, "audio_seconds_per_second": 160.4}
    return {"step": step, **losses, **speed, "peak_memory_gb": 1.18, "seconds": 90.0}


def estimate(value: float, **more: float) -> dict[str, Any]:
    interval = {"low": value - 0.1, "high": value + 0.1, "num_clips": 24, "num_clusters": 24}
    return {"value": value, **interval, **more}


def measure_verdict(name: str, outcome: str, difference: float | None, leads: bool = True) -> Any:
    found = None if difference is None else estimate(difference, p_value=0.001)
    sentence = f"{name.replace('_', ' ').capitalize()}: {outcome}."
    return {"name": name, "outcome": outcome, "leads": leads} | {
        "difference": found,
        "sentence": sentence,
    }


VERDICT = {
    "overall": "better",
    "sentences": ["Better than the base.", "Audio loss: better."],
    "clustered_by": "clip",
    "measures": [
        measure_verdict("audio_loss", "better", -1.5),
        measure_verdict("stop_loss", "better", -3.75),
        measure_verdict("text_loss", "better", -0.75, leads=False),
        measure_verdict("text_use", "better", 0.5, leads=False),
        measure_verdict("stop_rate", "better", 0.5),
        measure_verdict("runaway_rate", "no evidence", -0.05),
        measure_verdict("duration_error", "worse", 0.25),
        measure_verdict("silence_error", "no evidence", 0.01, leads=False),
        measure_verdict("longest_silence_excess", "no evidence", 0.02, leads=False),
        measure_verdict("repeated_frame_excess", "no evidence", 0.0, leads=False),
        measure_verdict("code_distance", "better", -0.2, leads=False),
        measure_verdict("word_error_rate", "better", -0.3),
        measure_verdict("character_error_rate", "better", -0.2, leads=False),
        measure_verdict("speaker_similarity", "not measured", None),
        measure_verdict("speaker_similarity_to_reference", "not measured", None, leads=False),
        measure_verdict("speaker_similarity_to_others", "not measured", None, leads=False),
        measure_verdict("quality_shortfall", "not measured", None),
    ],
}
TOTALS = (
    "stop_rate",
    "runaway_rate",
    "duration_ratio",
    "silence_share",
    "longest_silence_seconds",
    "repeated_frame_share",
    "code_distance",
    "word_error_rate",
    "character_error_rate",
)
UNMEASURED = (
    "speaker_similarity",
    "speaker_similarity_to_reference",
    "speaker_similarity_to_others",
    "dnsmos",
)
GENERATION: dict[str, Any] = {
    "num_prompts": 3,
    "num_too_long": 0,
    "max_seconds": 10.0,
    "seed": 0,
    "speech_models": {"asr": "tiny", "speaker": None, "dnsmos": None},
    "voices": [
        {
            "voice": voice,
            "temperature": temperature,
            "measures": {name: estimate(value) for name in TOTALS}
            | dict.fromkeys(UNMEASURED)
            | (dict.fromkeys(("stop_rate", "runaway_rate")) if temperature is None else {}),
        }
        for voice, temperature, value in (
            ("recording", None, 0.05),
            ("codec", None, 0.1),
            ("base", 1.0, 0.4),
            ("adapter", 1.0, 0.9),
        )
    ],
    "differences": [{"temperature": 1.0, "measures": {"stop_rate": estimate(0.5, p_value=0.1)}}],
}


def group_loss(kind: str, name: str, adapter: float) -> dict[str, Any]:
    difference = estimate(adapter - 8.9, p_value=0.001)
    losses = {"base": 8.9, "adapter": adapter, "difference": difference}
    return {"kind": kind, "name": name, "num_clips": 12, **losses}


BREAKDOWN = {
    "groups": [
        group_loss("speaker", "ada", 7.1),
        group_loss("speaker", "ben", 7.7),
        group_loss("task", "cloning", 7.0),
        group_loss("length", "2 to 5 s", 7.2),
        group_loss("position", "start", 7.9),
        group_loss("position", "end", 7.3),
    ],
    "base_stopping": {"at_end": 0.001, "before_end": 0.02},
    "adapter_stopping": {"at_end": 0.93, "before_end": 0.04},
    "worst_clips": [
        {"clip_id": "c7", "text": "A hard one.", "speaker": None, "base": 9.9, "adapter": 9.5}
    ],
}
TEXTS = ("The sun rises in the east.", "Who was that?", "It ran on & on, <b>for ever</b>.")


def blank_row(spec: TableSpec) -> dict[str, Any]:
    """A row in which every optional value is missing and the others are zeros and dashes."""

    def blank(column: Column) -> Any:
        if column.nullable:
            return None
        if pa.types.is_string(column.type):
            return "-"
        return False if pa.types.is_boolean(column.type) else 0

    return {column.name: blank(column) for column in spec.columns}


class Inputs:
    """The input files of the page, as values that a test may change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.title: str | None = "A voice"
        self.families = [V2]
        self.validation: dict[str, Any] = {
            "num_rows": 125,
            "num_clips": 120,
            "num_rejected": 5,
            "num_references": 0,
            "num_clips_of_one_channel": 0,
            "num_clips_of_separate_channels": 0,
            "num_rejected_by_reason": {"too_short": 2, "silent": 3},
            "seconds": 2160.0,
            "hours": 0.6,
            "splits": {"train": share(96, 0.5), "eval": share(24, 0.1)},
            "clip_seconds": {"min": 1.004, "median": 3.1, "max": 29.5},
            "speakers": SPEAKERS,
            "languages": {"en": SPEAKERS["ada"], "de": SPEAKERS["ben"]},
            "num_clips_without_speaker": 0,
            "num_clips_without_language": 0,
            "speakers_with_one_clip": {"speakers": [], "message": "cloning falls back"},
            "duplicates": [],
            "manifest_notes": [],
            "left_out": {},
            "shared_scene": None,
            # Not on the page.
            "rejected": {"reasons": {}, "speakers": {}, "languages": {}},
            "num_texts_from_transcripts": 0,
            "split_by": "clip",
            "overlap": {"audio": 0, "context": 0},
            "largest_group_num_clips": 1,
            "contradictions": {},
            "outliers": {},
            "text_findings": {},
            "outside_root": {"num_rows": 0, "first_rows": []},
            "ignored_manifest_keys": {},
        }
        self.packing: dict[str, Any] = {
            "max_tokens": 2048,
            "train": SPLIT,
            "eval": SPLIT | {"fill": 0.654},
            "fallbacks": [],
            "rejected": [],
        }
        self.more_packing: dict[str, Any] = {}  # by base model, beside the first
        # With other recordings each experiment has the results of eval/other/ too: `add_other`.
        self.other: dict[str, dict[str, Any]] = {}
        self.clip_seconds = np.linspace(1.0, 29.5, 120)
        self.texts: tuple[str, ...] = TEXTS
        self.text_speakers: dict[int, str | None] = {}  # by number of the text; otherwise ada
        self.take_measures: dict[str, dict[str, Any]] = {}  # by voice
        self.clip_measures: dict[str, int] = {}  # of the second clip; of the third it is twice that
        self.adapter_seconds = (2.0, 1.5, 4.0)
        self.experiments: dict[str, dict[str, Any]] = {"default": self.experiment()}

    @staticmethod
    def experiment(**adapter: float) -> dict[str, Any]:
        lines = [(0, 10.9), (20, 8.5), (40, 8.65)]
        return {
            "eval/metrics.json": {"adapter": ADAPTER | adapter, "base": dict(BASE)},
            "eval/verdict.json": copy.deepcopy(VERDICT),
            "eval/generation.json": copy.deepcopy(GENERATION),
            "eval/breakdown.json": copy.deepcopy(BREAKDOWN),
            "train/run.json": {
                "started_at": "2026-11-26T14:02:05+00:00",
                "machine": "2 x NVIDIA H100",
                "num_processes": 2,
                "higgs_pipe": "0.1.0",
                "git_commit": "0123abc",
                "packages": {"torch": "2.13.0"},
            },
            "train/metrics.jsonl": [
                *(evaluation_line(step, loss) for step, loss in lines),
                *(training_line(step, 10.5 - step / 20) for step in (10, 20, 30, 40)),
            ],
            "train/preflight.json": {
                "checks": [
                    {"name": "labels", "status": "passed", "found": "96 samples"},
                    {"name": "audio offset", "status": "no evidence", "found": "a random base"},
                ],
                "base_audio_loss_by_offset": {},
            },
            "train/config.json": {
                "base_model": "resources/tiny-higgs",
                "base_model_revision": None,
                "train": {"learning_rate": 0.0002, "lora": {"r": 16, "target_modules": ["a", "b"]}},
            },
        }

    def add_other(self, overall: str = "worse", **validation: Any) -> None:
        """Evaluate on other recordings too, with this verdict."""
        self.other = {
            "data/validation.json": copy.deepcopy(self.validation) | validation,
            "packed/packing.json": copy.deepcopy(self.packing),
        }
        for experiment in self.experiments.values():
            for name in ("metrics", "verdict", "generation", "breakdown"):
                value = copy.deepcopy(experiment[f"eval/{name}.json"])
                experiment[f"eval/other/{name}.json"] = value
            sentences = ["It has forgotten.", "Audio loss there: worse."]
            experiment["eval/other/verdict.json"] |= {"overall": overall, "sentences": sentences}
            experiment["eval/other/metrics.json"]["adapter"]["eval_loss"] = 11.9
            [worst] = experiment["eval/other/breakdown.json"]["worst_clips"]
            worst["clip_id"] = "o7"

    def add_temperature(self, temperature: float) -> None:
        """Speak at one more temperature: the base stops in 25 %, the adapter in 75 %."""
        generation = self.experiments["default"]["eval/generation.json"]
        for voice, rate in (("base", 0.25), ("adapter", 0.75)):
            measures = {"stop_rate": estimate(rate), "runaway_rate": estimate(1 - rate)}
            spoken = {"voice": voice, "temperature": temperature, "measures": measures}
            generation["voices"].append(spoken)
        rates = {"stop_rate": estimate(0.5, p_value=0.1), "runaway_rate": None}
        generation["differences"].append({"temperature": temperature, "measures": rates})

    @property
    def page(self) -> Path:
        return self.folder / "report" / "index.html"

    def write(self) -> None:
        files = {
            "report.json": {
                "report": {"title": self.title},
                "eval": {"other_manifest": "other.jsonl" if self.other else None},
            },
            "validation.json": self.validation,
            "packing.json": self.packing,
        }
        for name, experiment in self.experiments.items():
            files |= {f"experiments/{name}/{path}": value for path, value in experiment.items()}
        files |= {f"other/{path}": value for path, value in self.other.items()}
        files |= {f"{base}/packing.json": value for base, value in self.more_packing.items()}
        for path, value in files.items():
            values = value if path.endswith(".jsonl") else [value]
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_text("".join(json.dumps(line) + "\n" for line in values))
        self.write_clips()
        for name in self.experiments:
            folder = self.folder / "experiments" / name
            self.write_speech(folder / "eval", folder / "samples", self.adapter_seconds)
            if self.other:
                other = folder / "eval/other"
                self.write_speech(other, other / "samples", (3.0, 3.25, 3.5))

    def write_clips(self) -> None:
        splits = ["eval" if i % 5 == 0 else "train" for i in range(len(self.clip_seconds))]
        rows = [
            blank_row(CLIPS)
            | {"clip_id": f"c{i}", "split": split, "duration_seconds": seconds}
            | {name: i * value for name, value in self.clip_measures.items()}
            for i, (split, seconds) in enumerate(zip(splits, self.clip_seconds, strict=True))
        ]
        write_table(self.folder / "clips.parquet", CLIPS, rows)

    def write_speech(
        self, eval_dir: Path, samples: Path, adapter_seconds: tuple[float, ...]
    ) -> None:
        rows = []
        for i, text in enumerate(self.texts):
            reference = None if i else "c0-reference.wav"
            lengths = {"recording": 1.0, "codec": 1.0, "base": 4.0}
            lengths["adapter"] = adapter_seconds[i]
            for voice, seconds in lengths.items():
                is_drawn = voice in ("base", "adapter")
                row = blank_row(GENERATED) | {
                    **{"clip_id": f"c{i}", "voice": voice, "text": text},
                    "speaker": self.text_speakers.get(i, "ada"),
                    **{"task": "cloning", "sample": f"c{i}-{voice}.wav", "reference": reference},
                    "temperature": 1.0 if is_drawn else None,
                    "has_stopped": seconds < 4.0 if is_drawn else None,
                    "duration_seconds": seconds,
                    **self.take_measures.get(voice, {}),
                }
                rows.append(row)
                tone(samples / row["sample"], seconds)
        tone(samples / "c0-reference.wav", 1.5)
        write_table(eval_dir / "generation.parquet", GENERATED, rows)

    def run(self) -> None:
        report.run(
            config=self.folder / "report.json",
            clips=self.folder / "clips.parquet",
            validation=self.folder / "validation.json",
            packing=[self.folder / base / "packing.json" for base in ("", *self.more_packing)],
            bases=["tiny", *self.more_packing],
            experiments_dir=self.folder / "experiments",
            other_validation=self.folder / "other/data/validation.json",
            other_packing=[
                self.folder / "other" / name for name in self.other if name.endswith("packing.json")
            ],
            names=list(self.experiments),
            families=self.families,
            page=self.page,
            figures=self.page.parent / "figures",
        )

    def html(self) -> str:
        self.write()
        self.run()
        return self.page.read_text(encoding="utf-8")


class TextOfPage(HTMLParser):
    """The page as a reader sees it, and the cells of its tables' rows."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self._in_cell = self._is_hidden = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._is_hidden |= tag in ("style", "script")
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._is_hidden &= tag not in ("style", "script")
        self._in_cell &= tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if not self._is_hidden and (text := " ".join(data.split())):
            self.words.append(text)
            if self._in_cell:
                self.rows[-1][-1] = f"{self.rows[-1][-1]} {text}".strip()


def words(page: str) -> str:
    """The page without styles and tags, spaces made one."""
    return " ".join(TextOfPage(page).words)


def rows(page: str, label: str) -> list[list[str]]:
    """The other cells of each table row that starts with ``label``."""
    return [cells[1:] for cells in TextOfPage(page).rows if cells and cells[0] == label]
