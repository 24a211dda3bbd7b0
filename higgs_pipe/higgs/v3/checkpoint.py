"""The tensors of a Higgs TTS 3 checkpoint: each known, none unknown, the copied heads copies."""

import torch

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.higgs.pretrained import all_files, load_pretrained
from higgs_pipe.higgs.shards import Shards
from higgs_pipe.higgs.v3.native import (
    AUDIO_EMBEDDING,
    AUDIO_HEAD,
    CODEC_PREFIX,
    TEXT_HEAD,
    HiggsV3Config,
    skeleton,
)


def check_tensors(base: Pretrained) -> None:
    """Check that the model, the codec and the known copies are all that a checkpoint holds.

    Missing tensors are found when it is loaded.

    Raises:
        UserError: A tensor is unknown, or the stored audio head is not the audio embedding.
    """
    where = f"{base.setting} {base.name!r}"
    known = {*skeleton(load_pretrained(HiggsV3Config, base)).state_dict(), TEXT_HEAD, AUDIO_HEAD}
    with Shards(all_files(base)) as shards:
        names = shards.shapes
        unknown = [n for n in names if n not in known and not n.startswith(CODEC_PREFIX)]
        if unknown:
            raise UserError(
                f"{where}: {len(unknown)} tensors belong to no part of Higgs TTS 3:\n"
                f"{list_offenders(unknown)}\nUse the published checkpoint, or one merged from it."
            )
        is_untied = {AUDIO_HEAD, AUDIO_EMBEDDING} <= names.keys() and not torch.equal(
            shards[AUDIO_HEAD], shards[AUDIO_EMBEDDING]
        )
    if is_untied:
        raise UserError(
            f"{where}: {AUDIO_HEAD} is not {AUDIO_EMBEDDING}, but the two are one matrix, and "
            "servers read either. Use a checkpoint whose head is tied."
        )
