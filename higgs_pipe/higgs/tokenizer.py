"""The tokenizer of a base, as Transformers chooses it."""

from typing import Any

from transformers import PreTrainedTokenizerFast

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.higgs.pretrained import load_pretrained, small_files
from higgs_pipe.planning.checkpoint_files import read_object
from higgs_pipe.planning.user_files import UnfitFileError

# Names in tokenizer_config.json of the class that takes tokenizer.json as it is.
PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")


def load_tokenizer(base: Pretrained) -> Any:
    """Return the tokenizer that ``AutoTokenizer`` gives.

    ``AutoTokenizer`` imports every model's config, and with them PyTorch; it is asked for the
    checkpoints alone that name another class than the plain one, which the published ones do not.

    Raises:
        UserError: The checkpoint cannot be found, reached or read.
    """
    if _is_plain(base):
        return load_pretrained(PreTrainedTokenizerFast, base)
    from transformers import AutoTokenizer

    return load_pretrained(AutoTokenizer, base)


def _is_plain(base: Pretrained) -> bool:
    try:
        config = read_object(small_files(base) / "tokenizer_config.json")
    except (OSError, UnfitFileError):
        return False
    return config.get("tokenizer_class") in PLAIN and "auto_map" not in config
