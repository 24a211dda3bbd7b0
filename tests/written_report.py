"""A report with every part, whose values all differ, as lines to compare with ``report.txt``.

    PYTHONPATH=tests:bench:. python -m written_report > tests/stages/report.txt

writes that file again; read what has changed in it.
"""

import copy
import re
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from itertools import count
from pathlib import Path
from typing import Any

import soundfile as sf
from helpers import tone
from report_inputs import Inputs

from higgs_pipe.data.quality import AudioMeasures, TextMeasures

STEP = 0.013
NUMBERS = (int, float)


def full_inputs(folder: Path) -> Inputs:
    """Two experiments, other recordings, a packing for each of two bases, notes and alarms."""
    inputs = Inputs(folder)
    inputs.validation |= {
        "num_references": 7,
        "num_clips_without_speaker": 1,
        "num_clips_without_language": 1,
        "duplicates": [["c1", "c2"], ["c3", "c4"]],
        "manifest_notes": ["A first note.", "A second note."],
        "left_out": {"not_named": {"num_files": 5, "first_files": ["x.wav"]}},
        "shared_scene": "A room.",
        "overlap": {"audio": 1, "context": 1},
        "speakers_with_one_clip": {"speakers": ["cy", "di"], "message": "cloning falls back"},
    }
    fallback = {"speaker": "ada", "split": "eval", "num_clips": 3, "reason": "no other clip"}
    inputs.packing |= {
        "fallbacks": [fallback, fallback | {"speaker": "ben", "split": "train", "reason": "late"}],
        "rejected": [
            {"clip_id": "r1", "reason": "too_long", "message": "too long"},
            {"clip_id": "r2", "reason": "no_codes", "message": "no codes"},
        ],
    }
    inputs.more_packing = {"small": copy.deepcopy(inputs.packing)}
    inputs.text_speakers = {1: "ben", 2: None}
    inputs.take_measures = {
        voice: {
            **{"silence_share": place / 20, "longest_silence_seconds": place / 8},
            **{"repeated_frame_share": place / 50, "transcript": f"As the {voice} said."},
            **{"num_words": 10 * place, "num_word_errors": place + 1},
            **{"similarity_to_recording": 1 - place / 25, "dnsmos": 4 - place / 4},
        }
        for place, voice in enumerate(("recording", "codec", "base", "adapter"), start=1)
    }
    measures = [
        m.name for m in (*fields(AudioMeasures), *fields(TextMeasures)) if m.type in NUMBERS
    ]
    inputs.clip_measures = {name: place for place, name in enumerate(measures, start=1)}
    inputs.add_temperature(0.3)
    first = inputs.experiments["default"]
    first["train/run.json"]["git_commit"] += "-dirty"
    alarm = {"alarm": "codes_collapse", "step": 20, "message": "A first alarm."}
    first["train/metrics.jsonl"] += [alarm, alarm | {"step": 30, "message": "A second alarm."}]
    inputs.experiments["again"] = copy.deepcopy(first)
    shares = iter(inputs.validation["speakers"].values())
    inputs.add_other(speakers={"zoe": next(shares)}, languages={"fr": next(shares)})
    second = inputs.experiments["again"]
    second["eval/verdict.json"] |= {"overall": "no evidence", "sentences": ["It is hard to say."]}
    second["train/run.json"]["ancestor"] = {"name": "old", "fingerprint": "f" * 64}
    second["eval/metrics.json"]["ancestor"] = dict(second["eval/metrics.json"]["base"])
    inputs.other["packed/packing.json"]["rejected"].pop()
    second["train/run.json"]["started_at"] = "2026-11-27T09:30:00+00:00"
    second["train/config.json"]["base_model_revision"] = "another"
    second["train/config.json"]["train"]["lora"]["r"] = 8
    second["train/preflight.json"]["checks"].pop()
    second["train/metrics.jsonl"][-2:] = [alarm | {"step": 40, "message": "A third alarm."}]
    worst = second["eval/breakdown.json"]["worst_clips"]
    worst[0]["clip_id"] = "c8"
    worst.append(worst[0] | {"clip_id": "c9", "text": "Another hard one."})
    numbers = count(1)
    inputs.validation = other_numbers(inputs.validation, numbers)
    inputs.packing = other_numbers(inputs.packing, numbers)
    for values in (inputs.more_packing, inputs.other, *inputs.experiments.values()):
        for name, value in values.items():
            if name not in ("train/config.json", "train/run.json"):
                values[name] = other_numbers(value, numbers)
            if name.endswith("/metrics.json"):  # of the same clips and labels
                base = {k: v for k, v in values[name]["base"].items() if k.startswith("num_")}
                for model in values[name].values():
                    model |= base
    return inputs


def other_numbers(value: Any, numbers: Iterator[int]) -> Any:
    """Return a JSON value with larger numbers, each by more; steps and temperatures are kept."""
    if isinstance(value, dict):
        kept = ("step", "temperature", "seed")
        return {k: v if k in kept else other_numbers(v, numbers) for k, v in value.items()}
    if isinstance(value, list):
        return [other_numbers(item, numbers) for item in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    number = next(numbers)
    return value + number if isinstance(value, int) else round(value + STEP * number, 3)


def outline(page: str) -> str:
    """Return a page's body without styles, scripts and drawings; sounds are numbered."""
    page = re.sub(r"<(head|style|script)\b.*?</\1>", "", page, flags=re.DOTALL)
    page = re.sub(r"(<svg[^>]*role=\"img\"[^>]*>).*?</svg>", r"\1</svg>", page, flags=re.DOTALL)
    page = re.sub(r'(?<=<path d=")M[^"]{60,}', "wave", page)
    sounds = dict.fromkeys(re.findall(r'(?<= src=")data:[^"]*', page))
    for number, sound in enumerate(sounds, 1):
        page = page.replace(f'"{sound}"', f'"sound {number}"')
    return "\n".join(line.rstrip() for line in page.splitlines() if line.strip()) + "\n"


def written_report(folder: Path) -> str:
    """Make the report in a folder; return its lines."""
    inputs = full_inputs(folder)
    inputs.write()
    for number, path in enumerate(sorted(folder.rglob("samples/*.wav"))):
        tone(path, sf.info(path).duration, 200 + 10 * number)
    inputs.run()
    page = inputs.page.read_text(encoding="utf-8").replace(str(folder), "FOLDER")
    return outline(page)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(written_report(Path(scratch)), end="")
