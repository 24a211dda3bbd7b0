"""Families of the base models, determined while planning.

``validate`` judges texts by family, so that another base of the same family reruns nothing.
"""

from collections.abc import Mapping
from pathlib import Path

from higgs_pipe.planning.checkpoint_files import read_object
from higgs_pipe.planning.model_types import V2, V3
from higgs_pipe.planning.models import is_within

PUBLISHED = {
    "bosonai/higgs-audio-v2-generation-3B-base": V2,
    "bosonai/higgs-tts-2-3b-base": V2,
    "bosonai/higgs-tts-3-4b": V3,
    "bosonai/higgs-audio-v3-tts-4b": V3,
}


def family_of(name: str, revision: str | None, demo_bases: Mapping[str, str]) -> str:
    """Return the ``model_type`` of a base model.

    Args:
        name: A Hub id or a folder; except for the demo's, its ``config.json`` has been checked.
        revision: Its revision on the Hub.
        demo_bases: The ``model_type`` of the demo's folders, which may not exist yet.

    Returns:
        For another model on the Hub, ``name`` or ``name@revision``: its family is not yet known.
    """
    if demo := next((f for f in demo_bases if is_within(name, f)), None):
        return demo_bases[demo]
    if Path(name).is_dir():
        return str(read_object(Path(name, "config.json")).get("model_type"))
    return PUBLISHED.get(name, name if revision is None else f"{name}@{revision}")
