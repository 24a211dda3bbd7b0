"""What packing reads from a base without loading the model, compared with Transformers."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.family import config_of, family_of_base
from higgs_pipe.higgs.renderers import renderer_of
from higgs_pipe.higgs.tokenizer import load_tokenizer


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_base, tmp_path / "base", ignore=shutil.ignore_patterns("audio_tokenizer"))
    return tmp_path / "base"


@pytest.mark.parametrize("named", ["tiny_base", "v3_base"])
def test_the_model_shape_matches_the_native_config(
    named: str, request: pytest.FixtureRequest
) -> None:
    base = Pretrained("base_model", str(request.getfixturevalue(named)))
    assert renderer_of(base).shape == family_of_base(base).shape_of(config_of(base))


@pytest.mark.parametrize("tokenizer_class", ["PreTrainedTokenizerFast", "GPT2TokenizerFast", None])
def test_the_tokenizer_is_the_one_autotokenizer_chooses(
    base: Path, tokenizer_class: str | None
) -> None:
    file = base / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": tokenizer_class}))
    expected = AutoTokenizer.from_pretrained(base)
    found = load_tokenizer(Pretrained("base_model", str(base)))
    assert type(found) is type(expected)
    assert found.get_vocab() == expected.get_vocab()
    assert found.chat_template == expected.chat_template


@pytest.mark.parametrize(
    ("key", "value"),
    [("head_dim", None), ("audio_token_id", "272"), ("audio_bos_token_id", None)],
)
def test_a_config_without_a_required_number_is_refused(base: Path, key: str, value: object) -> None:
    file = base / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(UserError, match=key):
        renderer_of(Pretrained("base_model", str(base)))
