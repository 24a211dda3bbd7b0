"""The two families of Higgs models, and everything that differs between them.

A checkpoint's family is read from ``model_type`` in its ``config.json``. Code that depends on the
family takes the :class:`Family` of a base or a model and uses its fields; nothing else checks which
family it is::

    family = family_of_base(pretrained)
    shape = family.shape_of(native.config)  # sizes and token ids, by the same names

Code specific to a family is in its own folder, ``v2`` or ``v3``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.batch import PackedRow
from higgs_pipe.higgs.codes import Codes
from higgs_pipe.higgs.forms import FullForm
from higgs_pipe.higgs.packed_body import NativeParts, PackedForward
from higgs_pipe.higgs.pretrained import load_pretrained
from higgs_pipe.higgs.prompts import GeneratedCodes, ModelPrompt
from higgs_pipe.higgs.rules import RULES, config_json, unknown_model_type
from higgs_pipe.higgs.shape import BaseShape
from higgs_pipe.higgs.v2 import forms as v2_forms
from higgs_pipe.higgs.v2 import generation as v2_generation
from higgs_pipe.higgs.v2 import lora as v2_lora
from higgs_pipe.higgs.v2 import native as v2_native
from higgs_pipe.higgs.v2 import rows as v2_rows
from higgs_pipe.higgs.v2.body import PACKED_FORWARD as V2_PACKED_FORWARD
from higgs_pipe.higgs.v3 import forms as v3_forms
from higgs_pipe.higgs.v3 import generation as v3_generation
from higgs_pipe.higgs.v3 import lora as v3_lora
from higgs_pipe.higgs.v3 import native as v3_native
from higgs_pipe.higgs.v3 import rows as v3_rows
from higgs_pipe.higgs.v3.body import PACKED_FORWARD as V3_PACKED_FORWARD
from higgs_pipe.higgs.v3.checkpoint import check_tensors
from higgs_pipe.planning import model_types


@dataclass(frozen=True)
class Licence:
    """A licence that restricts the use of a base, for those who train on it.

    Attributes:
        name: Name of the licence.
        notice: A sentence for the log.
        points: The main points for a model card, a sentence each.
    """

    name: str
    notice: str
    points: tuple[str, ...]


@dataclass(frozen=True)
class LoraNames:
    """Names of a native model's modules, for LoRA and for messages about it."""

    presets: Mapping[str, tuple[str, ...]]  # of train.lora.target_modules
    in_full: Mapping[str, str]  # of train.lora.train_in_full
    # Parts of the model, and a piece of their parameters' names; the first match counts.
    parts: tuple[tuple[str, str], ...]
    task_type: str | None  # PEFT's; None: it wraps no generation of Transformers
    # A module with two uses, of which PEFT would give LoRA to one.
    only_in_full: str | None = None


@dataclass(frozen=True)
class Family:
    """A family of Higgs models."""

    name: str
    hub_tag: str  # by which the Hub finds adapters of the family
    model_type: str  # in config.json
    config_class: Any  # of Transformers, or like it
    model_class: Any  # the native model
    shape_of: Callable[[Any], BaseShape]  # of a native config
    skeleton: Callable[[Any], nn.Module]  # a native config's model without weights
    parts_of: Callable[[Any], NativeParts]  # of a native model
    place_of_text: Callable[[PackedRow, slice, BaseShape], slice]  # the first that a sample speaks
    num_ids: Callable[[Any], tuple[int, int]]  # of a native model: of text, of a codebook
    packed_forward: PackedForward
    generate_batch: Callable[..., Sequence[Codes]]  # (G, K) delayed frames of each prompt
    generated_codes: Callable[[Codes, int, int], GeneratedCodes]  # of frames; cap, stream EOS
    next_frame_logits: Callable[[Any, ModelPrompt], Tensor]  # (K, V)
    lora: LoraNames
    unquantized: tuple[str, ...]  # modules that keep their dtype
    forms: Mapping[str, FullForm]  # of full checkpoints
    adapter_usage: str  # template of the card's section on using an adapter
    licence: Licence | None  # where it restricts the use of what is trained
    load_options: Mapping[str, Any] = field(default_factory=dict)  # of from_pretrained
    check_tensors: Callable[[Pretrained], None] | None = None  # beyond that none is missing


V2 = Family(
    name=RULES[model_types.V2].model,
    hub_tag="higgs-audio-v2",
    model_type=model_types.V2,
    config_class=HiggsAudioV2Config,
    model_class=HiggsAudioV2ForConditionalGeneration,
    shape_of=v2_native.shape_of,
    skeleton=v2_native.skeleton,
    parts_of=v2_native.parts_of,
    place_of_text=v2_rows.place_of_text,
    num_ids=v2_native.num_ids,
    packed_forward=V2_PACKED_FORWARD,
    generate_batch=v2_generation.generate_batch,
    generated_codes=v2_generation.generated_codes,
    next_frame_logits=v2_generation.next_frame_logits,
    lora=LoraNames(v2_lora.PRESETS, v2_lora.IN_FULL, v2_lora.PARTS, task_type="CAUSAL_LM"),
    unquantized=("text_lm_head", "audio_lm_head"),
    forms=v2_forms.FORMS,
    adapter_usage="usage/v2_adapter.md.j2",
    licence=None,
    load_options={"use_text_head": True},
)


V3 = Family(
    name=RULES[model_types.V3].model,
    hub_tag="higgs-tts-3",
    model_type=model_types.V3,
    config_class=v3_native.HiggsV3Config,
    model_class=v3_native.HiggsV3Model,
    shape_of=v3_native.shape_of,
    skeleton=v3_native.skeleton,
    parts_of=v3_native.parts_of,
    place_of_text=v3_rows.place_of_text,
    num_ids=v3_native.num_ids,
    packed_forward=V3_PACKED_FORWARD,
    generate_batch=v3_generation.generate_batch,
    generated_codes=v3_generation.generated_codes,
    next_frame_logits=v3_native.next_frame_logits,
    lora=LoraNames(
        v3_lora.PRESETS,
        v3_lora.IN_FULL,
        v3_lora.PARTS,
        task_type=None,
        only_in_full=v3_lora.TIED,
    ),
    unquantized=(),
    forms=v3_forms.FORMS,
    adapter_usage="usage/v3_adapter.md.j2",
    licence=Licence(
        name="Boson Higgs TTS 3 Research and Non-Commercial License Agreement",
        notice="Higgs TTS 3 is licensed for research and non-commercial use: docs/v3.md#licence",
        points=(
            "Research and other non-commercial use only; it is not an open source licence.",
            "Commercial use, hosting it for others, fine-tuning or distilling it for resale or "
            "distribution, and building it into a product need a licence from Boson AI.",
            "Its Creator Use Grant (section II-A) covers monetised content that names the model.",
            "A voice is cloned with its speaker's consent only.",
        ),
    ),
    check_tensors=check_tensors,
)
FAMILIES = (V2, V3)


def full_form(base: Pretrained, name: str) -> FullForm:
    """Return a form of full checkpoints by its name.

    Raises:
        UserError: As :func:`family_of_base`, or the family has no such form.
    """
    family = family_of_base(base)
    if name not in family.forms:
        raise UserError(
            f"package.forms: {name} is not a form of {family.name}, which has "
            f"{', '.join(family.forms)}."
        )
    return family.forms[name]


def model_shapes(base: Pretrained) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of a base's native model, by name."""
    model = family_of_base(base).skeleton(config_of(base))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def family_of(config: Mapping[str, Any], where: str) -> Family:
    """Return the family that a checkpoint's ``config.json`` names.

    Args:
        config: The contents of the file.
        where: The checkpoint, for the message.

    Raises:
        UserError: The model type is none of the known ones.
    """
    found = config.get("model_type")
    for family in FAMILIES:
        if family.model_type == found:
            return family
    raise unknown_model_type(where, found)


def family_of_base(base: Pretrained) -> Family:
    """Return the family of a checkpoint.

    Raises:
        UserError: It cannot be found or reached, has no config, or is of no known family.
    """
    return family_of(config_json(base), f"{base.setting} {base.name!r}")


def family_of_model(native: Any) -> Family:
    """Return the family of a native model."""
    return family_of_config(native.config)


def family_of_config(config: Any) -> Family:
    """Return the family of a native config."""
    return family_of({"model_type": config.model_type}, type(config).__name__)


def config_of(base: Pretrained) -> Any:
    """Return the native config of a checkpoint.

    Raises:
        UserError: As :func:`family_of_base`.
    """
    return load_pretrained(family_of_base(base).config_class, base)
