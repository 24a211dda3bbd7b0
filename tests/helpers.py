"""Shared test helpers that need no model: paths, tones, stage configs, and data stages."""

import json
import os
import re
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile as sf

from higgs_pipe import clips_page, list_rows, measure, validate
from higgs_pipe.config.schema import json_schema
from higgs_pipe.config.settings import Config
from higgs_pipe.data.spans import Span
from higgs_pipe.data.tables import shard_path
from higgs_pipe.planning import config_check
from higgs_pipe.planning.checkpoint_files import NUMBERS_OF_BASE
from higgs_pipe.planning.model_types import V2
from higgs_pipe.planning.recordings import state_of

ROOT = Path(__file__).parents[1]
SCHEMA = json_schema()
# In a program of its own: the functions of bench/memory.py.
IMPORT_PEAK = f"import sys; sys.path.append({str(ROOT / 'bench')!r}); from memory import peak_bytes"
# Real recordings, where a machine has them beside the checkout.
REAL_SPEECH = ROOT.parent / "shared" / "data" / "real_speech" / "manifest.jsonl"
needs_real_speech = pytest.mark.skipif(
    not REAL_SPEECH.is_file(), reason="the real recordings are not on this machine"
)


def jobs_run(terminal: str) -> list[str]:
    """The jobs that a run of Snakemake shows, in order, each with its wildcards."""
    return re.findall(r"^[\d:]{8}  \[\d+/\d+\] (.*)$", terminal, re.MULTILINE)


def python_path(*folders: Path) -> str:
    """A PYTHONPATH: this checkout, these folders, and those of the environment."""
    inherited = os.environ.get("PYTHONPATH")
    return os.pathsep.join([*map(str, (ROOT, *folders)), *([inherited] if inherited else [])])


def environment_with(**variables: str) -> dict[str, str]:
    """The environment, from which this checkout is imported."""
    return os.environ | {"PYTHONPATH": python_path()} | variables


# What nobody may find in a file, a log or a page. Whoever asks for them gets them from here.
SECRETS = {
    "HF_TOKEN": "hf_1QvThisIsPlanted",
    "WANDB_API_KEY": "wb_2QvThisIsPlanted",
    "AWS_ACCESS_KEY_ID": "s3_3QvThisIsPlanted",
    "AWS_SECRET_ACCESS_KEY": "s3_4QvThisIsPlanted",
    "AWS_SESSION_TOKEN": "s3_5QvThisIsPlanted",
    "SNAKEMAKE_STORAGE_S3_SECRET_KEY": "s3_6QvThisIsPlanted",
}


def plant_secrets(folder: Path) -> dict[str, str]:
    """An environment with secrets: variables, and the files that libraries look for."""
    (folder / "token").write_text("hf_7QvThisIsPlanted")
    (folder / "netrc").write_text(
        "machine api.wandb.ai\n  login user\n  password wb_8QvThisIsPlanted\n"
    )
    return SECRETS | {"HF_TOKEN_PATH": str(folder / "token"), "NETRC": str(folder / "netrc")}


def files_with_secrets(folder: Path) -> tuple[int, list[Path]]:
    """The number of files of a folder, and those with a planted secret; ZIPs are not compressed."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return len(files), [path for path in files if b"QvThisIsPlanted" in path.read_bytes()]


class Seen(Exception):
    """Ends a stage once a test has seen enough of it."""


def write_stage_config(path: Path, **sections: Any) -> Path:
    """A ``results/config/<stage>.json`` as the workflow writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(sections), encoding="utf-8")
    return path


def run_validation(
    folder: Path,
    num_threads: int = 1,
    trained_clips: Path | None = None,
    families: Sequence[str] = (V2,),
    **sections: Any,
) -> Path:
    """Run list_rows, measure and validate with the settings that the workflow would give them.

    With 2 shards, unless the sections say otherwise: each has three tables.

    Args:
        folder: Where they write.
        num_threads: Of measure.
        trained_clips: Those of another manifest.
        families: Of the base models.
        sections: Of the config.

    Returns:
        ``folder / "data"``, where their results are.
    """
    sections["data"] = {"num_shards": 2} | sections.get("data", {})
    config = Config(base_model="b", codec="c", **sections).model_dump(by_alias=True)
    stages = {}
    for stage in ("list_rows", "measure", "validate"):
        text = config_check.stage_config_text(config, stage, SCHEMA)
        stages[stage] = write_stage_config(folder / f"config/{stage}.json", **json.loads(text))
    data = folder / "data"
    rows, recordings, measured = (
        data / name for name in ("rows.parquet", "recordings", "measured")
    )
    list_rows.run(stages["list_rows"], rows, recordings)
    for shard in range(config["data"]["num_shards"]):
        source, target = (shard_path(shards, shard) for shards in (recordings, measured))
        measure.run(stages["measure"], source, target, num_threads=num_threads)
    judge_rows(stages["validate"], data, families, trained_clips)
    return data


def judge_rows(
    stage: Path, data: Path, families: Sequence[str] = (V2,), trained_clips: Path | None = None
) -> None:
    """Run validate on the rows and measures in ``data``, where its results go too."""
    validate.run(
        stage,
        data / "rows.parquet",
        data / "measured",
        clips=data / "clips.parquet",
        rejected=data / "rejected.parquet",
        validation=data / "validation.json",
        shards_dir=data / "shards",
        families=list(families),
        trained_clips=trained_clips,
    )


def clips_page_of(folder: Path, rows: list[dict[str, Any]], **sections: Any) -> str:
    """The page of the recordings of a manifest, after validation with the same settings."""
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    sections = {"manifest": str(manifest), "data": {"num_shards": 2}} | sections
    run_validation(folder, **sections)
    config = Config(base_model="b", codec="c", **sections).model_dump(by_alias=True)
    text = config_check.stage_config_text(config, "clips_page", SCHEMA)
    return clips_page_with(folder, **json.loads(text))


def clips_page_with(folder: Path, **sections: Any) -> str:
    """The page of the recordings in ``folder / "data"``, by these settings of its stage."""
    data = folder / "data"
    page = data / "index.html"
    clips_page.run(
        config=write_stage_config(folder / "config/clips_page.json", **sections),
        rows=data / "rows.parquet",
        measured_dir=data / "measured",
        clips=data / "clips.parquet",
        rejected=data / "rejected.parquet",
        validation=data / "validation.json",
        page=page,
    )
    return page.read_text(encoding="utf-8")


def recordings_of(spans: Iterable[Span]) -> list[dict[str, Any]]:
    """Rows of RECORDINGS, as list_rows writes them."""
    return [{**span._asdict(), **state_of(span.audio_path)._asdict()} for span in spans]


def edit_result(path: Path, **values: Any) -> None:
    """Change values of a JSON result and remove its hash, which its writer never does."""
    content = json.loads(path.read_text(encoding="utf-8")) | values
    for key in ("sha256", "sha256_beside"):
        content.pop(key, None)
    path.write_text(json.dumps(content), encoding="utf-8")


def tone(path: Path, seconds: float, pitch_hz: float = 220.0, rate_hz: int = 24_000) -> Path:
    """A WAV with a tone that no other pitch repeats."""
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    samples = 0.3 * np.sin(2 * np.pi * pitch_hz * time) * (1 + np.sin(2 * np.pi * 3 * time)) / 2
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, samples, rate_hz)
    return path


def rows_of_tones(folder: Path, number: int) -> list[dict[str, Any]]:
    """Rows of a manifest, with recordings of 1.0, 1.1, 1.2 ... seconds."""
    return [
        {"audio": tone(folder / f"{i}.wav", 1 + i / 10, 200 + i).name, "text": f"Clip number {i}."}
        for i in range(number)
    ]


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Let writes to a file fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def wait_until(condition: Callable[[], bool], seconds: float = 200.0) -> None:
    """Wait until a condition holds; on a busy machine that may take long.

    Raises:
        TimeoutError: It does not hold in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


def has_ended(process: psutil.Process) -> bool:
    """Return whether a process has ended, even if its parent has not collected it."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def has_line_with(message: str, *tokens: str) -> bool:
    """Return whether one line of a message holds all tokens: a place, a key, a number."""
    return any(all(token in line for token in tokens) for line in message.splitlines())


def config_of_base(model_type: str = "higgs_audio_v2") -> dict[str, Any]:
    """Return the ``config.json`` of a base as planning reads it; every size is 8."""
    config: dict[str, Any] = {"model_type": model_type}
    for dotted in NUMBERS_OF_BASE.get(model_type, ()):
        *sections, key = dotted.split(".")
        section = config
        for name in sections:
            section = section.setdefault(name, {})
        section[key] = 8
    return config
