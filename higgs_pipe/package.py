"""Stage 6a: package the adapter, after a fresh process has verified that it loads and works.

::

    ADAPTER/             adapter_config.json, adapter_model.safetensors (PEFT)
        base_model.json  the base's weights, by their fingerprint
        README.md        model card, with loss.svg and samples/
        metrics.json     losses of adapter and base, from eval
        verdict.json     better, worse or no evidence, from eval
        provenance.json  config, data, versions, fingerprints, verification
        files.json, SHA256SUMS
    ADAPTER.zip          the same

``python -m higgs_pipe.package verify ADAPTER.zip`` checks a package of unknown origin.
"""

import logging
import platform
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import higgs_pipe
from higgs_pipe.cli import main, run_in_fresh_process
from higgs_pipe.config.stages import STAGES, PackageStage, Pretrained, load_stage
from higgs_pipe.data.clips.results import ValidationSummary
from higgs_pipe.data.files import atomic_folder, atomic_write, read_json, write_json, write_text
from higgs_pipe.data.hashing import sha256_of_file
from higgs_pipe.data.packing.results import PackingSummary
from higgs_pipe.data.results import Result
from higgs_pipe.data.specs import CodecInfo
from higgs_pipe.data.tables import read_codec_info
from higgs_pipe.higgs.adapter_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE_FILE,
    AdapterBase,
)
from higgs_pipe.higgs.family import family_of_base
from higgs_pipe.higgs.packed_for import check_packed_together
from higgs_pipe.listening.verdict import Verdict
from higgs_pipe.progress import activity
from higgs_pipe.publishing.card import CardFacts, CardModel, model_card
from higgs_pipe.publishing.checking import check_package
from higgs_pipe.publishing.fitting import check_fits
from higgs_pipe.publishing.naming import public_name, public_settings
from higgs_pipe.publishing.provenance import (
    PROVENANCE,
    BaseWeights,
    DataSummary,
    Provenance,
    Software,
)
from higgs_pipe.publishing.samples import publish_samples
from higgs_pipe.publishing.sealing import seal, write_zip
from higgs_pipe.reporting.charts import draw_loss
from higgs_pipe.reporting.experiments import read_experiments
from higgs_pipe.training.results import EvalMetrics, Proof, RunInfo, TrainedSettings
from higgs_pipe.training.run_info import git_commit, package_versions

logger = logging.getLogger("higgs_pipe")

# Stages whose settings decide the package, beside train's; those of others are parts of these.
DECIDING = ("validate", "tokenize", "pack", "eval", "package")


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
        name: Name of the experiment.
        data_dir: Results of validate.
        packed_dir: Results of pack.
        experiment_dir: Results of train and eval.
        config_dir: The stages' settings.
        package_dir: Folder of the package to write.
        archive: ZIP to write.

    Raises:
        UserError: The packaged adapter does not load, has no effect, or does not reproduce eval's
            loss.
    """
    stage = load_stage(PackageStage, config)
    metrics_path = experiment_dir / "eval" / "metrics.json"
    check_packed_together(packed_dir / "train.parquet", packed_dir / "eval.parquet")
    with atomic_folder(package_dir) as staged:
        copy_adapter(experiment_dir / "train" / "adapter", staged)
        results: dict[str, type[Result]] = {"metrics.json": EvalMetrics, "verdict.json": Verdict}
        for file, kind in results.items():
            kind.read(experiment_dir / "eval" / file)  # it is there, and whole
            shutil.copyfile(experiment_dir / "eval" / file, staged / file)
        proof = verify_in_fresh_process(
            staged, config_dir / "eval.json", packed_dir / "eval.parquet", metrics_path
        )
        codec = read_codec_info(packed_dir / "train.parquet")
        provenance = Provenance(
            name=name,
            higgs_pipe=Software(version=higgs_pipe.__version__, git_commit=git_commit()),
            python=platform.python_version(),
            packages=package_versions(),
            base_model=BaseWeights(
                name=public_name(stage.base_model),
                revision=proof.base_revision,
                fingerprint=proof.base_fingerprint,
            ),
            ancestor=RunInfo.read(experiment_dir / "train" / "run.json").ancestor,
            codec=replace(codec, codec=public_name(codec.codec)),
            config=all_settings(config_dir, experiment_dir),
            data=data_summary(data_dir, packed_dir, stage.package.show_speakers),
            verification=proof,
        )
        provenance.write(staged / PROVENANCE)
        write_card(staged, provenance, stage, codec, experiment_dir)
        seal(staged)
        with atomic_write(archive) as archive_aside:
            write_zip(staged, archive_aside)
    logger.info("%s and %s", package_dir, archive)


def verify(package: Path, /, base: str | None = None, base_revision: str | None = None) -> None:
    """Check that the files of an untrusted package are those that were packaged, and harmless.

    Args:
        package: Its folder or its ZIP.
        base: Folder or Hub id of a base; also checks that the adapter fits it, without loading
            weights.
        base_revision: Hub branch, tag or commit of the base.

    Raises:
        UserError: A file is not the one that was packaged, or the adapter does not fit the base.
    """
    checked = check_package(package)
    if base is not None:
        check_fits(checked, Pretrained("base", base, base_revision))
    logger.info(
        "%s: %d files as packaged, %d tensors%s",
        package,
        len(checked.files.files),
        len(checked.shapes),
        "" if base is None else f", trained on the weights of {base}",
    )


def copy_adapter(adapter_dir: Path, package_dir: Path) -> None:
    """Copy an adapter, removing the local path of its base.

    Raises:
        UserError: A file of it has changed since training.
    """
    base = AdapterBase.read(adapter_dir / BASE_FILE)
    shutil.copyfile(adapter_dir / ADAPTER_WEIGHTS, package_dir / ADAPTER_WEIGHTS)
    config = read_json(adapter_dir / ADAPTER_CONFIG)
    config["base_model_name_or_path"] = public_name(config["base_model_name_or_path"])
    write_json(package_dir / ADAPTER_CONFIG, config)
    named = base.model_copy(update={"name": public_name(base.name)})
    named.write(package_dir / BASE_FILE, beside=(ADAPTER_CONFIG, ADAPTER_WEIGHTS))


def verify_in_fresh_process(
    adapter_dir: Path, eval_config: Path, eval_rows: Path, metrics: Path
) -> Proof:
    """Run :mod:`higgs_pipe.verify` in a fresh process and return its results.

    Raises:
        UserError: The verification failed; the message says why.
    """
    with tempfile.TemporaryDirectory(dir=adapter_dir.parent) as scratch:
        result = Path(scratch) / "proof.json"
        with activity("loading the packaged adapter in a fresh process"):
            run_in_fresh_process(
                "verify",
                "the packaged adapter failed its proof",
                config=eval_config,
                adapter_dir=adapter_dir,
                eval_rows=eval_rows,
                metrics=metrics,
                result=result,
            )
        return Proof.read(result)


def all_settings(config_dir: Path, experiment_dir: Path) -> dict[str, Any]:
    """Return the settings that determine the package, with the experiment's train settings."""
    settings = {
        name: load_stage(STAGES[name], config_dir / f"{name}.json").model_dump(by_alias=True)
        for name in DECIDING
    }
    trained = TrainedSettings.read(experiment_dir / "train" / "config.json")
    return public_settings(settings | {"train": trained.model_dump()})


def data_summary(data_dir: Path, packed_dir: Path, show_speakers: bool) -> DataSummary:
    """Return counts and hashes of the data that the adapter was trained on."""
    hashed = [data_dir / "clips.parquet", packed_dir / "train.parquet", packed_dir / "eval.parquet"]
    return DataSummary.of(
        ValidationSummary.read(data_dir / "validation.json"),
        PackingSummary.read(packed_dir / "packing.json"),
        {path.name: sha256_of_file(path) for path in hashed},
        show_speakers,
    )


def write_card(
    package_dir: Path,
    provenance: Provenance,
    stage: PackageStage,
    codec: CodecInfo,
    experiment_dir: Path,
) -> None:
    """Write ``README.md`` with its chart and samples."""
    has_other = stage.eval.other_manifest is not None
    [experiment] = read_experiments(experiment_dir.parent, [experiment_dir.name], has_other)
    base = Pretrained("base_model", stage.base_model, provenance.base_model.revision)
    chart = draw_loss("Loss", "loss", [experiment])
    samples = publish_samples(
        experiment_dir / "eval" / "generation.parquet",
        experiment_dir / "samples",
        package_dir,
        stage.package.num_samples,
    )
    facts = CardFacts(
        provenance=provenance,
        family=family_of_base(base),
        base=CardModel.of(base, provenance.base_model.fingerprint),
        codec=CardModel.of(Pretrained("codec", codec.codec, codec.revision), codec.fingerprint),
        settings=stage.package,
        metrics=experiment.held_out.metrics,
        verdict=experiment.held_out.verdict,
        other=experiment.other,
        loss_chart=chart,
        samples=samples,
    )
    write_text(package_dir / f"{chart.file_name}.svg", chart.file)
    write_text(package_dir / "README.md", model_card(facts))


if __name__ == "__main__":
    if sys.argv[1:2] == ["verify"]:
        main(verify, sys.argv[2:])
    else:
        main(run)
