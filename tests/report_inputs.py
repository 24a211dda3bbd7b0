"""Input files of the report, as plain values: a sound run of one experiment."""

import json
from pathlib import Path
from typing import Any

from higgs_pipe import report

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
    return {"step": step, "loss": loss, "text_loss": 2, "audio_loss": loss - 2, "stop_loss": 7}


class Inputs:
    """The files that the page is made from, each a value that a test may change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.title = "A voice"
        self.validation: dict[str, Any] = {
            "num_rows": 125,
            "num_clips": 120,
            "num_rejected": 5,
            "num_references": 0,
            "num_clips_of_one_channel": 0,
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
            "num_audio_shared_by_splits": 0,
            "duplicates": [],
            # Not on the page.
            "rejected": {"reasons": {}, "speakers": {}, "languages": {}},
            "num_texts_from_transcripts": 0,
            "split_by": "clip",
            "overlap": {"audio": 0},
            "largest_group_num_clips": 1,
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
        self.experiments: dict[str, dict[str, Any]] = {"default": self.experiment()}

    @staticmethod
    def experiment(**adapter: float) -> dict[str, Any]:
        lines = [(0, 10.9), (20, 8.5), (40, 8.65)]
        return {
            "eval/metrics.json": {"adapter": ADAPTER | adapter, "base": dict(BASE)},
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

    @property
    def page(self) -> Path:
        return self.folder / "report" / "index.html"

    def write(self) -> None:
        files = {
            "report.json": {"report": {"title": self.title}},
            "validation.json": self.validation,
            "packing.json": self.packing,
        }
        for name, experiment in self.experiments.items():
            files |= {f"experiments/{name}/{path}": value for path, value in experiment.items()}
        for path, value in files.items():
            values = value if path.endswith(".jsonl") else [value]
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_text("".join(json.dumps(line) + "\n" for line in values))

    def run(self) -> None:
        report.run(
            config=self.folder / "report.json",
            validation=self.folder / "validation.json",
            packing=self.folder / "packing.json",
            experiments_dir=self.folder / "experiments",
            names=list(self.experiments),
            page=self.page,
        )

    def html(self) -> str:
        self.write()
        self.run()
        return self.page.read_text(encoding="utf-8")
