"""Prompt renderers by family, for ``pack`` and ``estimate``, which import no model."""

from collections.abc import Mapping

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.higgs.prompts import PromptRenderer
from higgs_pipe.higgs.rules import model_type_of
from higgs_pipe.higgs.v2.renderer import ChatRenderer
from higgs_pipe.higgs.v3.renderer import Renderer
from higgs_pipe.planning.model_types import V2, V3

# By model_type in config.json.
RENDERERS: Mapping[str, type[PromptRenderer]] = {V2: ChatRenderer, V3: Renderer}


def renderer_of(base: Pretrained) -> PromptRenderer:
    """Return the prompt renderer of a checkpoint.

    Raises:
        UserError: The checkpoint cannot be found or reached, is of no known family, or lacks what
            prompts need.
    """
    return RENDERERS[model_type_of(base)](base)
