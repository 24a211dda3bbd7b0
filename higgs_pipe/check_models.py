"""Stage 0: check a base model and a codec on the Hub, before anything is measured."""

import logging
from pathlib import Path

from higgs_pipe.cli import main
from higgs_pipe.config.stages import ModelsStage, load_stage
from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.higgs.pretrained import small_files
from higgs_pipe.planning.models import config_fault, is_hub_id, weights_fault

logger = logging.getLogger("higgs_pipe")


def run(config: Path, checked: Path) -> None:
    """Check the models that the config names on the Hub; planning has already checked folders.

    Only small files are downloaded.

    Args:
        config: ``results/config/models.json``.
        checked: Text file to write: the findings, one per line.

    Raises:
        UserError: A checkpoint does not exist, cannot be reached within seconds, or is of the
            wrong kind.
    """
    stage = load_stage(ModelsStage, config)
    lines, faults = [], []
    for pretrained in (stage.pretrained_base, stage.pretrained_codec):
        setting, name = pretrained.setting, pretrained.name
        if not is_hub_id(name):
            continue
        folder = small_files(pretrained)
        fault = config_fault(setting, folder) or weights_fault(setting, folder, has_files=False)
        if fault:
            faults.append(f"{setting} {name!r} {fault}")
        lines.append(f"{setting}: {name} at commit {folder.name}\n")
    if faults:
        raise UserError(
            f"These checkpoints cannot be used:\n{list_offenders(faults)}\n"
            "Fix them in your config, or with --config, and run snakemake again."
        )
    checked.parent.mkdir(parents=True, exist_ok=True)
    checked.write_text("".join(lines), encoding="utf-8")
    for line in lines:
        logger.info("%s", line.rstrip())


if __name__ == "__main__":
    main(run)
