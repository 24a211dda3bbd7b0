"""Stage 8: package the adapter, once a fresh process has proved that it loads and works.

::

    ADAPTER/             adapter_config.json, adapter_model.safetensors (PEFT)
        base_model.json  the base's weights, by their fingerprint
        README.md        model card
        metrics.json     eval's, adapter beside base
        verdict.json     eval's: better, worse or no evidence
        provenance.json  config, data, versions, fingerprints, and the proof
        SHA256SUMS
    ADAPTER.zip          the same
"""

import json
import logging
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import jinja2
import yaml

import higgs_pipe
from higgs_pipe.cli import main
from higgs_pipe.config.settings import PackConfig
from higgs_pipe.config.stages import STAGES, PackageStage, PackStage, load_stage
from higgs_pipe.data.clips.results import ValidationSummary
from higgs_pipe.data.files import atomic_write, write_text
from higgs_pipe.data.hashing import sha256_of_file
from higgs_pipe.data.packing.results import PackingSummary
from higgs_pipe.data.results import Result, ResultPart
from higgs_pipe.data.specs import CodecInfo
from higgs_pipe.data.tables import read_codec_info
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.lora import BASE_FILE
from higgs_pipe.listening.verdict import Verdict
from higgs_pipe.progress import activity
from higgs_pipe.training.results import EvalMetrics, Proof, TrainedSettings
from higgs_pipe.training.run_info import git_commit, package_versions

logger = logging.getLogger("higgs_pipe")

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", BASE_FILE)
# Stages whose settings are parts of others, or do not change the package.
PARTS_OF_OTHERS = ("base_model", "codec", "list_rows", "measure", "estimate", "accept", "report")
ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # equal files give an equal archive
METRIC_ROWS = (
    ("eval_loss", "loss (text + audio)"),
    ("eval_text_loss", "text"),
    ("eval_audio_loss", "audio, mean of codebooks"),
    ("eval_audio_loss_codebook_0", "audio, codebook 0"),
    ("eval_stop_loss", "stop"),
)


class Software(ResultPart):
    """This package; the commit ends in ``-dirty`` if it was changed, and is None without git."""

    version: str
    git_commit: str | None


class BaseWeights(ResultPart):
    """The checkpoint that the adapter was trained on."""

    name: str
    revision: str | None
    fingerprint: str


class DataSummary(ResultPart):
    """Counts and hashes of the data that the adapter was trained on."""

    validation: ValidationSummary
    packing: PackingSummary
    sha256: dict[str, str]


class Provenance(Result):
    """``provenance.json``; ``config`` holds the settings of every stage, defaults included."""

    made_by: ClassVar[str] = "package_adapter"

    name: str
    higgs_pipe: Software
    python: str
    packages: dict[str, str]
    base_model: BaseWeights
    codec: CodecInfo
    config: dict[str, Any]
    data: DataSummary
    verification: Proof


def run(
    config: Path,
    name: str,
    data_dir: Path,
    packed_dir: Path,
    experiment_dir: Path,
    config_dir: Path,
    package_dir: Path,
    archive: Path,
) -> None:
    """Package one experiment's adapter.

    Args:
        config: ``results/config/package.json``.
        name: Of the experiment.
        data_dir: Results of validate.
        packed_dir: Results of pack.
        experiment_dir: Results of train and eval.
        config_dir: The stages' settings.
        package_dir: Where the directory goes.
        archive: Where the ZIP goes.

    Raises:
        UserError: The packaged adapter does not load, does nothing, or misses eval's loss.
    """
    stage = load_stage(PackageStage, config)
    pack = load_stage(PackStage, config_dir / "pack.json").pack
    metrics_path = experiment_dir / "eval" / "metrics.json"
    verdict_path = experiment_dir / "eval" / "verdict.json"
    package_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".package-", dir=package_dir.parent) as aside:
        staged = Path(aside) / name
        staged.mkdir()
        for file_name in ADAPTER_FILES:
            shutil.copyfile(experiment_dir / "train" / "adapter" / file_name, staged / file_name)
        shutil.copyfile(metrics_path, staged / "metrics.json")
        shutil.copyfile(verdict_path, staged / "verdict.json")
        proof = verify_in_fresh_process(
            staged, config_dir / "eval.json", packed_dir / "eval.parquet", metrics_path
        )
        provenance = Provenance(
            name=name,
            higgs_pipe=Software(version=higgs_pipe.__version__, git_commit=git_commit()),
            python=platform.python_version(),
            packages=package_versions(),
            base_model=BaseWeights(
                name=stage.base_model,
                revision=proof.base_revision,
                fingerprint=proof.base_fingerprint,
            ),
            codec=read_codec_info(packed_dir / "train.parquet"),
            config=all_settings(config_dir, experiment_dir),
            data=data_summary(data_dir, packed_dir),
            verification=proof,
        )
        provenance.write(staged / "provenance.json")
        card = model_card(
            provenance,
            stage,
            pack,
            EvalMetrics.read(metrics_path),
            Verdict.read(verdict_path),
        )
        write_text(staged / "README.md", card)
        write_text(staged / "SHA256SUMS", checksums(staged))
        with atomic_write(archive) as archive_aside:
            write_zip(staged, archive_aside)
        shutil.rmtree(package_dir, ignore_errors=True)
        staged.rename(package_dir)
    logger.info("%s and %s", package_dir, archive)


def verify_in_fresh_process(
    adapter_dir: Path, eval_config: Path, eval_rows: Path, metrics: Path
) -> Proof:
    """Run :mod:`higgs_pipe.verify` in a process of its own and return its proof.

    Raises:
        UserError: The proof failed; the process has said why.
    """
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "proof.json"
        command = [sys.executable, "-m", "higgs_pipe.verify"]
        options = {
            "--config": eval_config,
            "--adapter-dir": adapter_dir,
            "--eval-rows": eval_rows,
            "--metrics": metrics,
            "--result": result,
        }
        for option, path in options.items():
            command += [option, str(path)]
        with activity("loading the packaged adapter in a fresh process"):
            finished = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
        if finished.returncode != 0:
            raise UserError(f"the packaged adapter failed its proof:\n{finished.stderr.strip()}")
        return Proof.read(result)


def all_settings(config_dir: Path, experiment_dir: Path) -> dict[str, Any]:
    """Return the settings of every stage, defaults included; of train, the experiment's."""
    settings = {
        name: load_stage(stage, config_dir / f"{name}.json").model_dump(by_alias=True)
        for name, stage in STAGES.items()
        if name not in PARTS_OF_OTHERS and name != "train"
    }
    trained = TrainedSettings.read(experiment_dir / "train" / "config.json")
    return settings | {"train": trained.model_dump()}


def data_summary(data_dir: Path, packed_dir: Path) -> DataSummary:
    """Return counts and hashes of the data that the adapter was trained on."""
    hashed = [data_dir / "clips.parquet", packed_dir / "train.parquet", packed_dir / "eval.parquet"]
    return DataSummary(
        validation=ValidationSummary.read(data_dir / "validation.json"),
        packing=PackingSummary.read(packed_dir / "packing.json"),
        sha256={path.name: sha256_of_file(path) for path in hashed},
    )


def model_card(
    provenance: Provenance,
    stage: PackageStage,
    pack: PackConfig,
    metrics: EvalMetrics,
    verdict: Verdict,
) -> str:
    """Render ``README.md`` with the Hub's metadata."""
    front_matter = {
        "base_model": stage.base_model,
        "library_name": "peft",
        "pipeline_tag": "text-to-speech",
        "license": stage.package.license,
        "language": sorted(provenance.data.validation.languages),
        "tags": ["higgs-audio-v2", "lora", "text-to-speech"],
    }
    training: dict[str, Any] = {}
    for key, value in provenance.config["train"]["train"].items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        training |= {f"{key} {part}".rstrip(): setting for part, setting in parts}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("higgs_pipe"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML
    )
    return environment.get_template("model_card.md.j2").render(
        front_matter=yaml.safe_dump(front_matter, sort_keys=False, allow_unicode=True).strip(),
        name=provenance.name,
        description=stage.package.description,
        base=provenance.base_model,
        version=higgs_pipe.__version__,
        data=provenance.data.validation,
        metrics=metrics,
        verdict=verdict,
        metric_rows=METRIC_ROWS,
        system_prompt=json.dumps(pack.system_prompt),
        clean_text=pack.clean_text,
        train={key: value for key, value in training.items() if value is not None},
        verification=provenance.verification,
    )


def checksums(directory: Path) -> str:
    """Return the lines of ``SHA256SUMS``, as ``sha256sum`` writes them."""
    paths = sorted(directory.iterdir())
    return "".join(f"{sha256_of_file(path)}  {path.name}\n" for path in paths)


def write_zip(directory: Path, archive: Path) -> None:
    """Archive a directory under its own name; equal files give equal bytes."""
    with zipfile.ZipFile(archive, "w", compression=zipfile.ZIP_DEFLATED) as stream:
        for path in sorted(directory.iterdir()):
            entry = zipfile.ZipInfo(f"{directory.name}/{path.name}", date_time=ZIP_TIME)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            stream.writestr(entry, path.read_bytes())


if __name__ == "__main__":
    main(run)
