"""Checks of a Higgs TTS 3 checkpoint: all tensors present, none unknown, tied heads equal."""

import torch

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.errors import UserError, list_offenders
from higgs_pipe.higgs.pretrained import all_files, load_pretrained
from higgs_pipe.higgs.rules import config_json
from higgs_pipe.higgs.shards import Shards
from higgs_pipe.higgs.v3.codec import UNUSED, tensor_names
from higgs_pipe.higgs.v3.native import (
    AUDIO_EMBEDDING,
    AUDIO_HEAD,
    TEXT_HEAD,
    HiggsV3Config,
    skeleton,
)


def check_tensors(base: Pretrained) -> None:
    """Check that a checkpoint has the model, the codec and the known copies, and nothing else.

    Missing tensors of the model are found when it is loaded. If there are none of the codec, the
    codec is a separate checkpoint.

    Raises:
        UserError: A tensor is unknown, one of the codec's is missing, or the stored audio head is
            not the audio embedding.
    """
    where = f"{base.setting} {base.name!r}"
    model = skeleton(load_pretrained(HiggsV3Config, base)).state_dict()
    codec = tensor_names(config_json(base))
    known = {*model, *codec, UNUSED, TEXT_HEAD, AUDIO_HEAD}
    with Shards(all_files(base)) as shards:
        names = shards.shapes
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UserError(
                f"{where}: {len(unknown)} tensors belong to no part of Higgs TTS 3:\n"
                f"{list_offenders(unknown)}\nUse the published checkpoint, or one merged from it."
            )
        lacking = sorted(codec - names.keys())
        if 0 < len(lacking) < len(codec):
            raise UserError(
                f"{where}: {len(lacking)} of {len(codec)} tensors of the codec are missing:\n"
                f"{list_offenders(lacking)}\nUse the published checkpoint, or one merged from it."
            )
        is_untied = {AUDIO_HEAD, AUDIO_EMBEDDING} <= names.keys() and not torch.equal(
            shards[AUDIO_HEAD], shards[AUDIO_EMBEDDING]
        )
    if is_untied:
        raise UserError(
            f"{where}: {AUDIO_HEAD} is not {AUDIO_EMBEDDING}, but the two are one matrix, and "
            "servers read either. Use a checkpoint whose head is tied."
        )
