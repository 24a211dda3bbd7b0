"""Stage 6b: a full checkpoint of base and adapter, verified in a fresh process.

Weights are read, merged and written one at a time, so that this takes memory for a few tensors, not
for the model; only the verification loads the model. The ``forms`` module of each family shows the
files of its folders. Each folder also has::

    README.md     a description, and how to load it
    merge.json    base, codec, adapter, and the effect of rounding
    proof.json    the differences from the adapter
    files.json, SHA256SUMS
"""

import logging
import math
from pathlib import Path

import jinja2
import torch

import higgs_pipe
from higgs_pipe.cli import main, run_in_fresh_process
from higgs_pipe.config.stages import MergeStage, PackStage, Pretrained, load_stage
from higgs_pipe.data.files import (
    atomic_folder,
    check_free_space,
    full_disk_named,
    write_text,
)
from higgs_pipe.data.hashing import sha256_of_file
from higgs_pipe.data.specs import CodecInfo
from higgs_pipe.data.tables import read_codec_info
from higgs_pipe.higgs.codec_checkpoint import bundle_of, num_codec_bytes
from higgs_pipe.higgs.family import Family, family_of_base, full_form, model_shapes
from higgs_pipe.higgs.forms import FullForm
from higgs_pipe.higgs.lora import check_base
from higgs_pipe.higgs.merging import Merge, read_changes
from higgs_pipe.higgs.packed_for import base_of_rows
from higgs_pipe.higgs.pretrained import (
    PinnedModel,
    checkpoint_dir,
)
from higgs_pipe.higgs.shards import Shards, write_shards
from higgs_pipe.publishing.naming import public_name
from higgs_pipe.publishing.sealing import seal
from higgs_pipe.training.form_results import FormProof, MergeRecord
from higgs_pipe.training.run_info import git_commit

logger = logging.getLogger("higgs_pipe")


def run(
    config: Path,
    form: str,
    name: str,
    adapter_dir: Path,
    config_dir: Path,
    eval_rows: Path,
    form_dir: Path,
) -> None:
    """Write a full checkpoint of one experiment, and verify it.

    Args:
        config: ``results/config/merge.json``.
        form: merged (with the base's names) or original (with those of Boson AI's code, v2 only).
        name: Name of the experiment.
        adapter_dir: The experiment's adapter.
        config_dir: The stages' settings.
        eval_rows: Packed held-out rows.
        form_dir: Where the checkpoint goes.

    Raises:
        UserError: The family has no such form, the base changed since training, base and adapter
            do not fit, the disk has no room, or the verification failed.
    """
    stage = load_stage(MergeStage, config)
    base = base_of_rows(eval_rows, stage.pretrained_base)
    kind = full_form(base.pretrained, form)
    check_base(adapter_dir, base)
    codec = read_codec_info(eval_rows)
    dtype: torch.dtype = getattr(torch, stage.package.dtype)
    with full_disk_named(form_dir), atomic_folder(form_dir) as staged:
        record = write_form(form, staged, base, codec, adapter_dir, dtype)
        record.write(staged / "merge.json")
        proof = prove_in_fresh_process(form, staged, adapter_dir, config_dir, eval_rows)
        pack = load_stage(PackStage, config_dir / "pack.json")
        family = family_of_base(base.pretrained)
        card = checkpoint_card(name, record, proof, pack, family, kind)
        write_text(staged / "README.md", card)
        seal(staged)
    logger.info("%s", form_dir)


def write_form(
    form: str,
    folder: Path,
    base: PinnedModel,
    codec: CodecInfo,
    adapter_dir: Path,
    dtype: torch.dtype,
) -> MergeRecord:
    """Write weights and side files.

    Args:
        form: The name of the form.
        folder: Where the files go.
        base: The base.
        codec: The codec that made the codes of training.
        adapter_dir: The adapter.
        dtype: The dtype of the weights.

    Returns:
        What was merged, and the effect of rounding.

    Raises:
        UserError: Base and adapter do not fit, or the disk has no room.
    """
    named_codec = Pretrained("codec", codec.codec, codec.revision)
    changes = read_changes(adapter_dir)
    kind = full_form(base.pretrained, form)
    shapes = model_shapes(base.pretrained)
    with Shards(checkpoint_dir(base.pretrained)) as weights:
        merge = Merge(weights, changes, dtype)
        merge.check(shapes)
        sources = kind.sources(sorted(shapes), weights.shapes)
        written = {name: weights.shapes[source] for name, source in sources.items()}
        sizes = [math.prod(shape) * dtype.itemsize for shape in written.values()]
        if kind.copies_codec:
            sizes.append(num_codec_bytes(named_codec))
        logger.info("writing %.1f GB", sum(sizes) / 1e9)
        check_free_space(folder.parent, sum(sizes), "a full checkpoint")
        write_shards(folder, written, dtype, lambda name: merge[sources[name]])
    kind.write_side_files(folder, base.pretrained, named_codec, dtype)
    rounding = merge.rounding
    logger.info(
        "%d of %d weights changed; rounding to %s: %.2g of the weights, %.2g of the changes (RMS)",
        len(changes),
        len(shapes),
        dtype,
        rounding.relative_error,
        rounding.error_of_change,
    )
    return MergeRecord(
        form=form,
        dtype=str(dtype).removeprefix("torch."),
        base=public_name(base.name),
        base_revision=base.revision,
        base_fingerprint=base.fingerprint,
        codec=public_name(codec.codec),
        codec_revision=codec.revision,
        codec_fingerprint=codec.fingerprint,
        adapter_sha256=sha256_of_file(adapter_dir / "adapter_model.safetensors"),
        num_weights=len(shapes),
        num_changed=len(changes),
        max_rounding_error=rounding.max_error,
        relative_rounding_error=rounding.relative_error,
        rounding_error_of_change=rounding.error_of_change,
        higgs_pipe=higgs_pipe.__version__,
        git_commit=git_commit(),
    )


def prove_in_fresh_process(
    form: str,
    form_dir: Path,
    adapter_dir: Path,
    config_dir: Path,
    eval_rows: Path,
) -> FormProof:
    """Run :mod:`higgs_pipe.prove_form` in a fresh process, which writes ``proof.json``.

    Raises:
        UserError: The verification failed; the message says why.
    """
    result = form_dir / "proof.json"
    run_in_fresh_process(
        "prove_form",
        f"the {form} checkpoint failed its proof",
        config=config_dir / "eval.json",
        form=form,
        form_dir=form_dir,
        adapter_dir=adapter_dir,
        eval_rows=eval_rows,
        result=result,
    )
    return FormProof.read(result)


def checkpoint_card(
    name: str,
    record: MergeRecord,
    proof: FormProof,
    pack: PackStage,
    family: Family,
    form: FullForm,
) -> str:
    """Render ``README.md``."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("higgs_pipe"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML
    )
    is_on_hub = record.codec_revision is not None
    codec = Pretrained("codec", record.codec, record.codec_revision)
    return environment.get_template("checkpoint_card.md.j2").render(
        name=name,
        record=record,
        proof=proof,
        pack=pack.pack,
        family=family,
        form=form,
        names_codec=is_on_hub and bundle_of(codec) is None,
    )


if __name__ == "__main__":
    main(run)
