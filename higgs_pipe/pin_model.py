"""Pin a checkpoint: download it if needed, and record its commit and its weights' fingerprint."""

import logging
from pathlib import Path

from higgs_pipe.cli import main
from higgs_pipe.config.stages import BaseModelStage, CodecStage, load_stage
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.pretrained import PinnedModel

logger = logging.getLogger("higgs_pipe")


def run(config: Path, setting: str, pinned: Path) -> None:
    """Pin the base model or the codec.

    Args:
        config: ``results/config/base_model.json`` or ``results/config/codec.json``.
        setting: ``base_model`` or ``codec``.
        pinned: :class:`PinnedModel` to write.

    Raises:
        UserError: The checkpoint cannot be found or reached, or has no weight file.
    """
    if setting == "base_model":
        pretrained = load_stage(BaseModelStage, config).pretrained_base
    elif setting == "codec":
        pretrained = load_stage(CodecStage, config).pretrained_codec
    else:
        raise UserError(f"setting {setting!r} is neither base_model nor codec.")
    found = PinnedModel.of(pretrained)
    found.write(pinned)
    at = f" at commit {found.revision}" if found.revision else ""
    logger.info("%s: %s%s, weights %.12s", setting, found.name, at, found.fingerprint)


if __name__ == "__main__":
    main(run)
