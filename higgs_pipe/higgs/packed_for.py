"""The family and the base that packed rows were made for."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.tables import TableFile
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.pretrained import PinnedModel
from higgs_pipe.higgs.rules import RULES, model_type_of

REPACK = "run: snakemake --forcerun pack_rows"


def rows_metadata(base: PinnedModel) -> dict[str, Any]:
    """Return the metadata of a table of rows that are packed for a base."""
    return base.as_metadata() | {"family": RULES[model_type_of(base.pretrained)].model}


def check_packed_together(train_rows: Path, eval_rows: Path) -> None:
    """Check that the rows of both splits were packed for one base, from the codes of one codec.

    Raises:
        UserError: They differ in one of them.
    """
    stamps = [TableFile(rows, "pack_rows").stamp() for rows in (train_rows, eval_rows)]
    models = {"pinned": "base", "family": "family", "codec_info": "codec"}
    differing = [name for key, name in models.items() if stamps[0].get(key) != stamps[1].get(key)]
    if differing:
        raise UserError(
            f"{train_rows} and {eval_rows} were packed for another {' and '.join(differing)} each; "
            f"{REPACK}"
        )


def base_of_rows(rows: Path, configured: Pretrained, others: Path | None = None) -> PinnedModel:
    """Return the base that packed rows were made for, after a check that it is still the same.

    Args:
        rows: ``packed/train.parquet`` or ``packed/eval.parquet``.
        configured: The base that the config names, ``stage.pretrained_base``.
        others: The rows of the other split, which are used with them.

    Raises:
        UserError: The rows name no base, another family's or another one than the config does, or
            its weights changed since it was pinned; or ``others`` were packed for other models.
    """
    try:
        stamp = TableFile(rows, "pack_rows").stamp()
        base, packed_for = (
            PinnedModel.model_validate(stamp["pinned"]["base_model"]),
            stamp["family"],
        )
    except (KeyError, ValidationError):
        raise UserError(
            f"{rows}: not a table of packed rows that names its base; {REPACK}"
        ) from None
    if base.name != configured.name:
        raise UserError(
            f"{rows} was packed for base_model {base.name!r} of the family {packed_for}, but the "
            f"config names {configured.name!r}; {REPACK}"
        )
    family = RULES[model_type_of(configured)].model
    if packed_for != family:
        raise UserError(
            f"{rows} was packed for {packed_for}, but base_model {configured.name!r} is now "
            f"{family}; {REPACK}"
        )
    if others is not None:
        check_packed_together(rows, others)
    base.check_unchanged()
    return base
