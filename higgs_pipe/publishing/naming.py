"""Names stripped of what they reveal about a machine or a person."""

import re
from pathlib import Path
from typing import Any

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Settings whose values are folders or files of this machine, or Hub ids.
CHECKPOINTS = (
    "base_model", "codec", "asr", "quality", "speaker", "dnsmos",
    "accelerate_config", "init_adapter",
)  # fmt: skip
# Settings that describe the machine or the recordings, and no result.
PRIVATE = ("manifest", "other_manifest", "main_process_ip")


def public_name(name: str) -> str:
    """Name a checkpoint without its folder on this machine; a Hub id stays."""
    if HUB_ID.fullmatch(name) and not Path(name).exists():
        return name
    return Path(name).resolve().name


def public_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings, at any depth, without folders, URLs and the manifest."""
    public: dict[str, Any] = {}
    for key, value in settings.items():
        if key in PRIVATE:
            continue
        if isinstance(value, dict):
            public[key] = public_settings(value)
        elif key in CHECKPOINTS and isinstance(value, str):
            public[key] = public_name(value)
        else:
            public[key] = value
    return public
