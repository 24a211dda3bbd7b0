"""Untrusted base models: a quick error message, whatever is in their small files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import IMPORT_PEAK

from higgs_pipe.config.stages import Pretrained
from higgs_pipe.errors import UserError
from higgs_pipe.higgs import rendering
from higgs_pipe.higgs.codec_checkpoint import codec_of_base
from higgs_pipe.higgs.loading_errors import checkpoint_json
from higgs_pipe.higgs.renderers import renderer_of
from higgs_pipe.higgs.shards import Shards
from higgs_pipe.planning.models import folder_fault

# Prints by how much memory grew at its peak, in MiB, and the sentence.
LOAD = f"""
{IMPORT_PEAK}
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.renderers import renderer_of
before = peak_bytes()
try:
    renderer_of(Pretrained("base_model", sys.argv[1], None))
except UserError as error:
    print((peak_bytes() - before) // 2**20, error, sep="\\n")
"""


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    return folder


def change(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def refusal(base: Path) -> str:
    with pytest.raises(UserError) as error:
        renderer_of(Pretrained("base_model", str(base), None))
    return str(error.value)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("", "has no chat template"),
        ("Speak!", "leaves out a text"),
        ("{% for %}", "Expected an expression"),
        ("{{ 'a }}", "is not one of Jinja"),
        ("{{ 3 ** (10 ** 9) }}", "multiplies in line 1"),
        ("\n{{ 'a' * 10 }}", "multiplies in line 2"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ [][messages] }}", "leaves out a text"),
        ("{{ 1 + 'a' }}", "TypeError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.clear() }}", "unsafe"),
        ("{% for n in range(99999) %}and so on and on{% endfor %}", "writes 1,599,984 characters"),
        ("x" * 1_000_001, "1,000,001 characters"),
    ],
)
def test_a_template_that_renders_no_prompt_is_refused(base: Path, template: str, told: str) -> None:
    (base / "chat_template.jinja").write_text(template)
    assert told in refusal(base)


def test_a_template_that_runs_too_long_is_stopped(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "RENDER_SECONDS", 0.5)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    (base / "chat_template.jinja").write_text(loop)
    assert "seconds for one conversation" in refusal(base)


def test_a_template_may_use_at_most_a_gigabyte(base: Path) -> None:
    twice = "{% for n in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}"
    (base / "chat_template.jinja").write_text("{% set ns = namespace(s='aaaa') %}" + twice)
    command = [sys.executable, "-c", LOAD, str(base)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    grown, said = ended.stdout.splitlines()
    assert "1,073,741,824 bytes" in said
    assert int(grown) < 1200


@pytest.mark.parametrize(
    "content",
    [
        "garbage",
        "{}",
        "[]",
        "[" * 100_000,
        "\ud800",
        '{"model": {"type": "BPE", "vocab": {"a": "b"}, "merges": []}, "added_tokens": []}',
    ],
)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_garbage_in_a_json_file_of_the_base_is_a_user_error(
    base: Path, name: str, content: str
) -> None:
    if name == "tokenizer_config.json" and content.startswith("{"):
        return  # keys that nobody reads
    (base / name).write_text(content, errors="surrogatepass")
    assert str(base) in refusal(base)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("num_codebooks", value) for value in (10**9, 0, -1, "8", None, [8], True, 8.5)),
        *(("vocab_size", 10**12), ("codebook_size", 2**15), ("num_hidden_layers", 10**9)),
        *(("hidden_size", 0), ("intermediate_size", "x"), ("model_type", ["higgs_audio_v2"])),
    ],
)
def test_impossible_sizes_in_a_config_are_refused_in_planning(
    base: Path, key: str, value: object
) -> None:
    change(base / "config.json", {key: value})
    assert key in str(folder_fault("base_model", str(base)))


def test_a_config_without_sizes_does_not_fall_back_to_defaults(base: Path) -> None:
    (base / "config.json").write_text('{"model_type": "higgs_audio_v2"}')
    assert "no vocab_size" in str(folder_fault("base_model", str(base)))


def test_a_tokenizer_of_another_base_is_refused(base: Path) -> None:
    change(base / "config.json", {"vocab_size": 300})
    assert "300" in refusal(base)


def test_a_folder_without_a_config_is_named(base: Path) -> None:
    (base / "config.json").unlink()
    assert "no config.json" in refusal(base)


def test_a_template_token_missing_from_the_tokenizer_is_named(base: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (base / name).read_text()
        (base / name).write_text(text.replace("<|eot_id|>", "<|other|>"))
    assert "no <|eot_id|>" in refusal(base)


@pytest.mark.parametrize(
    "content",
    [
        *("garbage", "[]", "[" * 100_000, '{"audio_tokenizer": {}}'),
        '{"audio_tokenizer": {"audio_tokenizer_name_or_path": 1}}',
    ],
)
def test_a_processor_that_names_no_codec_is_a_user_error(base: Path, content: str) -> None:
    shutil.rmtree(base / "audio_tokenizer")
    (base / "processor_config.json").write_text(content)
    with pytest.raises(UserError, match="names no codec"):
        codec_of_base(Pretrained("base_model", str(base), None))


@pytest.mark.parametrize("content", ["garbage", "[]", "{}", "[" * 100_000, '{"weight_map": 1}'])
def test_a_malformed_weight_index_is_named_by_the_merge(base: Path, content: str) -> None:
    (base / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=r"index\.json"):
        Shards(base)


def test_the_codec_named_by_a_processor_gets_the_given_revision(base: Path) -> None:
    shutil.rmtree(base / "audio_tokenizer")
    named = {"audio_tokenizer": {"audio_tokenizer_name_or_path": "org/codec"}}
    (base / "processor_config.json").write_text(json.dumps(named))
    found = codec_of_base(Pretrained("base_model", str(base), None), "v2")
    assert found == Pretrained("codec", "org/codec", "v2")


def test_weights_not_in_safetensors_are_not_merged(base: Path) -> None:
    (base / "model.safetensors").rename(base / "model.bin")
    with pytest.raises(UserError, match="not in safetensors files"):
        Shards(base)


def test_an_unreadable_json_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"index\.json cannot be read"):
        checkpoint_json(tmp_path / "index.json")
