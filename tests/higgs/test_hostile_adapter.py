"""Untrusted adapters and packages: an error message, whatever is in their files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from higgs_pipe.config.settings import LoraSettings
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.data.results import BESIDE_KEY, write_hashed
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_FILE, AdapterBase
from higgs_pipe.higgs.ancestor import name_of
from higgs_pipe.higgs.lora import adapter_state, add_lora, load_adapter, save_adapter
from higgs_pipe.higgs.merging import read_changes
from higgs_pipe.higgs.model import load_base
from higgs_pipe.higgs.origin import adapter_origin
from higgs_pipe.higgs.pretrained import PinnedModel
from higgs_pipe.planning.ancestors import check_lora_settings
from higgs_pipe.planning.forms import num_weights

DEEP = [b"[" * 100_000, b'{"a":' * 100_000]
NOT_AN_OBJECT = [*DEEP, b"[]", b"null", b"\xed\xa0\x80", b"\x00"]
HEADERS = [
    b"",
    b"x" * 7,
    (10**12).to_bytes(8, "little") + b"{}",
    (8).to_bytes(8, "little") + b"[[[[",
]


@pytest.fixture(scope="module")
def made(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "adapter"
    base = Pretrained("base_model", str(tiny_base))
    model = add_lora(load_base(base, torch.float32), LoraSettings(r=2), seed=0)
    save_adapter(model, adapter_state(model), {}, folder, PinnedModel.of(base))
    return folder


@pytest.fixture
def adapter(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "adapter"))


def seal(adapter: Path) -> None:
    """Recompute the file hashes, as an attacker could."""
    values = json.loads((adapter / BASE_FILE).read_text())
    kept = {key: values[key] for key in values if key not in (BESIDE_KEY, "sha256")}
    write_hashed(adapter / BASE_FILE, kept, beside=(ADAPTER_CONFIG, ADAPTER_WEIGHTS))


@pytest.mark.parametrize("content", NOT_AN_OBJECT, ids=range(len(NOT_AN_OBJECT)))
def test_every_reader_names_an_adapter_config_that_is_not_an_object(
    adapter: Path, content: bytes
) -> None:
    (adapter / ADAPTER_CONFIG).write_bytes(content)
    seal(adapter)
    with pytest.raises(UserError, match=ADAPTER_CONFIG):
        adapter_origin(adapter)
    with pytest.raises(UserError, match=ADAPTER_CONFIG):
        check_lora_settings(adapter, LoraSettings(r=2).model_dump())
    with pytest.raises(UserError, match="is damaged"):
        read_changes(adapter)


def test_an_adapter_config_with_a_non_string_base_is_refused(adapter: Path) -> None:
    config = json.loads((adapter / ADAPTER_CONFIG).read_text())
    (adapter / ADAPTER_CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": 17}))
    with pytest.raises(UserError, match=rf"{ADAPTER_CONFIG} is damaged .*base 17"):
        adapter_origin(adapter)


@pytest.mark.parametrize(
    "changed", [{"r": "x"}, {"r": 0}, {"peft_type": "../x"}, {"lora_alpha": [1]}]
)
def test_an_adapter_config_that_cannot_be_merged_is_refused(adapter: Path, changed: dict) -> None:
    config = json.loads((adapter / ADAPTER_CONFIG).read_text())
    (adapter / ADAPTER_CONFIG).write_text(json.dumps(config | changed))
    seal(adapter)
    with pytest.raises(UserError, match="is damaged"):
        read_changes(adapter)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("rank_pattern", {"q_proj": 4}),
        ("alpha_pattern", {"q_proj": 4}),
        ("layer_replication", [[0, 1]]),
        ("target_parameters", ["embed_tokens.weight"]),
        ("fan_in_fan_out", True),
        ("lora_bias", True),
        ("use_qalora", True),
        ("megatron_config", {"tensor_model_parallel_size": 2}),
    ],
)
def test_an_adapter_of_another_formula_is_not_merged(
    adapter: Path, setting: str, value: object
) -> None:
    config = json.loads((adapter / ADAPTER_CONFIG).read_text())
    (adapter / ADAPTER_CONFIG).write_text(json.dumps(config | {setting: value}))
    seal(adapter)
    with pytest.raises(UserError, match=rf"cannot be merged, because of\n *{setting}\n"):
        read_changes(adapter)


@pytest.mark.parametrize(
    "changed", [{"target_modules": "q_proj("}, {"bias": "x"}, {"megatron_config": {"a": 1}}]
)
def test_an_adapter_config_that_peft_cannot_load_is_refused(
    adapter: Path, tiny_base: Path, changed: dict
) -> None:
    config = json.loads((adapter / ADAPTER_CONFIG).read_text())
    (adapter / ADAPTER_CONFIG).write_text(json.dumps(config | changed))
    seal(adapter)
    model = load_base(Pretrained("base_model", str(tiny_base)), torch.float32)
    with pytest.raises(UserError, match="no adapter for this base_model"):
        load_adapter(model, adapter)


@pytest.mark.parametrize("content", HEADERS, ids=range(len(HEADERS)))
def test_weights_with_a_false_header_are_refused(adapter: Path, content: bytes) -> None:
    (adapter / ADAPTER_WEIGHTS).write_bytes(content)
    seal(adapter)
    with pytest.raises(UserError, match="is damaged"):
        read_changes(adapter)
    with pytest.raises(UserError, match=ADAPTER_WEIGHTS):
        num_weights(adapter / ADAPTER_WEIGHTS)


@pytest.mark.parametrize("content", NOT_AN_OBJECT, ids=range(len(NOT_AN_OBJECT)))
def test_a_provenance_that_is_not_an_object_is_named(adapter: Path, content: bytes) -> None:
    (adapter / "provenance.json").write_bytes(content)
    for read in (adapter_origin, name_of):
        with pytest.raises(UserError, match=r"provenance\.json is damaged"):
            read(adapter)


@pytest.mark.parametrize("beside", [["x"], {"../adapter_config.json": "0"}, {"": "0"}, {"/x": "0"}])
def test_hashes_of_files_outside_the_adapter_are_refused(adapter: Path, beside: object) -> None:
    values = json.loads((adapter / BASE_FILE).read_text())
    kept = {key: values[key] for key in values if key != "sha256"}
    write_hashed(adapter / BASE_FILE, kept | {BESIDE_KEY: beside})
    with pytest.raises(UserError, match="files elsewhere"):
        AdapterBase.read(adapter / BASE_FILE)
