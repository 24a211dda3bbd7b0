"""Rules of the prompts of Higgs TTS 3."""

from higgs_pipe.data.prompt_rules import PromptRules
from higgs_pipe.higgs.v2.marks import MARKS as V2_MARKS
from higgs_pipe.higgs.v2.marks import NAME as V2
from higgs_pipe.higgs.v3.tags import DELIVERY_TAGS, NAME, PROMPT_TOKENS, TAGS, nearest_tag

# Inference engines pad a shorter reference with silence before they encode it (SGLang-Omni,
# mlx-audio). Codes that were made without it cannot be padded, so packing takes a longer one.
MIN_REFERENCE_SECONDS = 1.0

RULES = PromptRules(
    model=NAME,
    tags=TAGS,
    delivery_tags=DELIVERY_TAGS,
    reserved=PROMPT_TOKENS,
    nearest_tag=nearest_tag,
    foreign={V2: V2_MARKS},
    has_system_message=False,
    has_scenes=False,
    joins_dialogues=False,
    min_reference_seconds=MIN_REFERENCE_SECONDS,
)
