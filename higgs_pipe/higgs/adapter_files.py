"""The files of a trained adapter: hashed when written, checked when loaded."""

from pathlib import Path
from typing import ClassVar

from higgs_pipe.data.results import ResultPart
from higgs_pipe.higgs.pretrained import PinnedModel

BASE_FILE = "base_model.json"  # beside the adapter: exactly which base it was trained on
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


class AdapterBase(PinnedModel):
    """``base_model.json`` of an adapter; reading it checks the files beside it."""

    made_by: ClassVar[str] = "train_adapter"


class Ancestor(ResultPart):
    """The adapter that a training started from: its name, and the SHA-256 of its weights."""

    name: str
    fingerprint: str


def check_adapter(adapter_dir: Path) -> None:
    """Check an adapter against its hashes, if this program wrote it; others have none.

    Raises:
        UserError: A file has changed since training wrote it.
    """
    if (adapter_dir / BASE_FILE).exists():
        AdapterBase.read(adapter_dir / BASE_FILE)
