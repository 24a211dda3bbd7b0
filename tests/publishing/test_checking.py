"""Package checks: every file that differs from the original is named; nothing is executed."""

import hashlib
import io
import json
import logging
import os
import random
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import has_line_with
from safetensors.torch import save_file

from higgs_pipe import package as packaging
from higgs_pipe.config.settings import LoraSettings
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.adapter_files import BASE_FILE
from higgs_pipe.higgs.lora import adapter_state, add_lora, save_adapter
from higgs_pipe.higgs.model import load_base
from higgs_pipe.higgs.pretrained import PinnedModel
from higgs_pipe.higgs.v2 import miniature
from higgs_pipe.package import verify
from higgs_pipe.publishing import contents, fitting, tensors
from higgs_pipe.publishing.checking import check_checkpoint, check_package
from higgs_pipe.publishing.contents import open_contents
from higgs_pipe.publishing.sealing import seal, write_zip
from higgs_pipe.publishing.tensors import NotSafetensorsError, read_shapes

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def package(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that a package needs, sealed."""
    folder = tmp_path_factory.mktemp("packages") / "ada"
    base = Pretrained("base_model", str(tiny_base))
    model = add_lora(load_base(base, torch.float32), LoraSettings(r=2), seed=0)
    save_adapter(model, adapter_state(model), {}, folder, PinnedModel.of(base))
    (folder / "README.md").write_text("# Ada\n")
    (folder / "provenance.json").write_text("{}\n")
    (folder / "samples").mkdir()
    (folder / "samples/01-base.wav").write_bytes(b"RIFF\x04\x00\x00\x00WAVE")
    seal(folder)
    return folder


@pytest.fixture
def copy(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package, tmp_path / "ada"))


def faults(path: Path) -> str:
    with pytest.raises(UserError) as error:
        check_package(path)
    return str(error.value)


def test_an_untouched_package_passes_as_folder_and_as_zip(package: Path, tmp_path: Path) -> None:
    write_zip(package, tmp_path / "ada.zip")
    for path in (package, tmp_path / "ada.zip"):
        checked = check_package(path)
        assert checked.files.files.keys() >= {"README.md", WEIGHTS, "samples/01-base.wav"}
        assert len(checked.shapes) == 40


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def lengthen(path: Path) -> None:
    os.truncate(path, 100_000_001)


def list_nothing(path: Path) -> None:
    path.write_text("{}")


def link(path: Path) -> None:
    path.rename(path.with_name("kept"))
    path.symlink_to("kept")


@pytest.mark.parametrize(
    ("change", "name", "tokens"),
    [
        (flip, WEIGHTS, (WEIGHTS, "changed")),
        (truncate, WEIGHTS, (WEIGHTS, "not safetensors")),
        (append, "README.md", ("README.md", "7 bytes of 6")),
        (append, "files.json", ("SHA256SUMS", "not the checksums")),
        (append, "SHA256SUMS", ("SHA256SUMS", "not the checksums")),
        (Path.unlink, "SHA256SUMS", ("SHA256SUMS", "not the checksums")),
        (Path.unlink, BASE_FILE, (BASE_FILE, "missing")),
        (Path.unlink, "files.json", ("files.json", "missing")),
        (list_nothing, "files.json", ("files.json", "not a list of files")),
        (link, "README.md", ("README.md", "a link")),
        (flip, "samples/01-base.wav", ("samples/01-base.wav", "not a WAV")),
        (lengthen, "samples/01-base.wav", ("samples/01-base.wav", "too long a one")),
        (append, WEIGHTS, (WEIGHTS, "not safetensors")),
    ],
)
def test_a_changed_file_is_named(
    copy: Path, change: Callable[[Path], None], name: str, tokens: tuple[str, ...]
) -> None:
    change(copy / name)
    assert has_line_with(faults(copy), *tokens)


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    assert "absent.zip: there is no folder" in faults(tmp_path / "absent.zip")


def test_a_renamed_file_is_named_with_both_names(copy: Path) -> None:
    (copy / "README.md").rename(copy / "CARD.md")
    assert has_line_with(faults(copy), "CARD.md", "renamed from README.md")
    assert has_line_with(faults(copy), "README.md", "missing")


@pytest.mark.parametrize(
    ("name", "content", "fact"),
    [
        ("notes.md", "hello", "not in the package"),
        ("pytorch_model.bin", "hello", "neither safetensors nor text nor WAV"),
        ("setup.py", "hello", "neither safetensors nor text nor WAV"),
        ("deep.json", "[" * 100_000, "not JSON"),
        ("loss.svg", "<svg><script>alert(1)</script></svg>", "script"),
        ("loss.svg", "<svg>< foreignObject><p/></foreignObject></svg>", "script"),
        ("loss.svg", "<svg><IFRAME src='page'/></svg>", "script"),
        ("loss.svg", "<svg onLoad = 'alert(1)'/>", "script"),
        ("loss.svg", "<svg><a href='JavaScript:alert(1)'/></svg>", "script"),
        ("samples/02.wav", "RIFX\4\0\0\0WAVE", "not a WAV"),
        ("samples/02.wav", "RIFF\4\0\0\0AVI ", "not a WAV"),
        ("samples/.gitattributes", "*.wav", "neither safetensors nor text nor WAV"),
        ("other.safetensors", "hello, world", "not safetensors"),
        ("list.safetensors", "\x02" + 7 * "\0" + "[]", "not an object"),
        ("none.safetensors", "\x08" + 7 * "\0" + '{"a": 1}', "'a' without a valid dtype"),
        ("long.md", "x" * 20_000_001, "more than 20,000,000 bytes"),
    ],
)
def test_an_unexpected_file_is_named(copy: Path, name: str, content: str, fact: str) -> None:
    (copy / name).write_text(content)
    assert has_line_with(faults(copy), name, fact)


def test_a_pipe_in_the_folder_is_named_and_not_read(copy: Path) -> None:
    os.mkfifo(copy / "notes.md")
    assert has_line_with(faults(copy), "notes.md", "not a regular file")


def test_a_tensor_whose_size_contradicts_its_shape_is_named(copy: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}).encode()
    (copy / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    assert has_line_with(faults(copy), WEIGHTS, "'a' without a valid")


@pytest.mark.parametrize("second", [(0, 16), (32, 48)])
def test_overlapping_or_gapped_tensors_are_refused_even_if_listed(
    copy: Path, second: tuple[int, int]
) -> None:
    header = json.dumps(
        {
            name: {"dtype": "F32", "shape": [4], "data_offsets": place}
            for name, place in (("a", (0, 16)), ("b", second))
        }
    ).encode()
    (copy / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + bytes(second[1]))
    for name in ("files.json", "SHA256SUMS"):
        (copy / name).unlink()
    seal(copy)
    assert has_line_with(faults(copy), WEIGHTS, "overlap")


@pytest.mark.parametrize(
    ("tensor", "is_valid"),
    [
        *(
            ({"dtype": d, "shape": [3, 1], "data_offsets": [0, 24]}, True)
            for d in ("F64", "I64", "U64")
        ),
        *(
            ({"dtype": d, "shape": [3, 2], "data_offsets": [0, 24]}, True)
            for d in ("F32", "I32", "U32")
        ),
        *(
            ({"dtype": d, "shape": [3, 4], "data_offsets": [0, 24]}, True)
            for d in ("F16", "BF16", "I16", "U16")
        ),
        *(
            ({"dtype": d, "shape": [2, 3, 4], "data_offsets": [0, 24]}, True)
            for d in ("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2")
        ),
        ({"dtype": "F32", "shape": ["3", 2], "data_offsets": [0, 24]}, False),
        ({"dtype": "F32", "shape": [-3, -2], "data_offsets": [0, 24]}, False),
        ({"dtype": "F32", "shape": [3, 2], "data_offsets": [0, 24, 48]}, False),
        ({"dtype": "F31", "shape": [3, 2], "data_offsets": [0, 24]}, False),
    ],
    ids=str,
)
def test_tensor_sizes_must_match_dtype_and_shape(tensor: dict[str, Any], is_valid: bool) -> None:
    header = json.dumps({"a": tensor}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(24)
    if is_valid:
        assert read_shapes(io.BytesIO(content), len(content)) == {"a": tuple(tensor["shape"])}
    else:
        with pytest.raises(NotSafetensorsError, match="'a' without a valid"):
            read_shapes(io.BytesIO(content), len(content))


def test_an_oversized_safetensors_header_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    header = json.dumps({"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}).encode()
    content = len(header).to_bytes(8, "little") + header
    monkeypatch.setattr(tensors, "MAX_HEADER_BYTES", len(header))
    assert read_shapes(io.BytesIO(content), len(content)) == {"a": (0,)}
    monkeypatch.setattr(tensors, "MAX_HEADER_BYTES", len(header) - 1)
    with pytest.raises(NotSafetensorsError, match="no safetensors header"):
        read_shapes(io.BytesIO(content), len(content))


@pytest.mark.parametrize(
    "name", ["adapter_config.json", WEIGHTS, BASE_FILE, "provenance.json", "README.md"]
)
def test_a_package_sealed_without_a_required_file_is_incomplete(copy: Path, name: str) -> None:
    for removed in (name, "files.json", "SHA256SUMS"):
        (copy / removed).unlink()
    seal(copy)
    assert has_line_with(faults(copy), name, "missing")


@pytest.mark.parametrize("name", ["config.json", "merge.json", "proof.json", "README.md"])
def test_a_checkpoint_sealed_without_a_required_file_is_incomplete(
    tmp_path: Path, name: str
) -> None:
    for kept in {"config.json", "merge.json", "proof.json", "README.md"} - {name}:
        (tmp_path / kept).write_text("{}")
    seal(tmp_path)
    with pytest.raises(UserError) as error:
        check_checkpoint(tmp_path)
    assert has_line_with(str(error.value), name, "missing")


def test_files_added_by_the_hub_and_snakemake_are_ignored(copy: Path) -> None:
    (copy / ".snakemake_timestamp").touch()
    (copy / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (copy / ".cache/huggingface").mkdir(parents=True)
    (copy / ".cache/huggingface/README.md.metadata").write_text("x")
    check_package(copy)


def entry(name: str, **attributes: Any) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    for key, value in attributes.items():
        setattr(made, key, value)
    return made


@pytest.mark.parametrize(
    ("member", "tokens"),
    [
        (entry("../evil.md"), ("../evil.md", "elsewhere")),
        (entry("ada/../../evil.md"), ("evil.md", "elsewhere")),
        (entry("/evil.md"), ("/evil.md", "elsewhere")),
        (entry("ada\\evil.md"), ("evil.md", "differs between systems")),
        (entry("ada/link.md", external_attr=(stat.S_IFLNK | 0o777) << 16), ("link.md", "a link")),
        (entry("ada/bomb.md", compress_type=zipfile.ZIP_DEFLATED), ("bomb.md", "compressed")),
        (entry("other/notes.md"), ("2 entries at the top",)),
        (entry("ada/README.md"), ("README.md", "twice")),
        (entry("ada//notes.md"), ("notes.md", "elsewhere")),
        (entry("notes.md"), ("notes.md", "not in a folder")),
        (entry("ada/pipe", external_attr=(stat.S_IFIFO | 0o644) << 16), ("pipe", "special file")),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_with_links_outside_paths_or_bombs_is_refused(
    package: Path, tmp_path: Path, member: zipfile.ZipInfo, tokens: tuple[str, ...]
) -> None:
    write_zip(package, tmp_path / "ada.zip")
    with zipfile.ZipFile(tmp_path / "ada.zip", "a") as archive:
        archive.writestr(member, "0" * 10_000)
    assert has_line_with(faults(tmp_path / "ada.zip"), *tokens)
    assert not (tmp_path / "evil.md").exists()


@pytest.mark.parametrize(
    ("key", "value", "fact"),
    [
        ("flag_bits", 1, "encrypted"),
        ("compress_type", zipfile.ZIP_DEFLATED, "compressed"),
        ("file_size", 2, "compressed"),
    ],
)
def test_an_encrypted_compressed_or_mismatched_zip_entry_is_refused(
    package: Path, tmp_path: Path, key: str, value: int, fact: str
) -> None:
    write_zip(package, tmp_path / "ada.zip")
    with zipfile.ZipFile(tmp_path / "ada.zip", "a") as archive:
        archive.writestr("ada/locked.md", "0")
        setattr(archive.infolist()[-1], key, value)
    assert has_line_with(faults(tmp_path / "ada.zip"), "locked.md", fact)


def test_a_zip_entry_name_with_a_null_byte_is_refused(package: Path, tmp_path: Path) -> None:
    write_zip(package, tmp_path / "ada.zip")
    with zipfile.ZipFile(tmp_path / "ada.zip", "a") as archive:
        archive.writestr("ada/notes.md#.exe", "0")
    content = (tmp_path / "ada.zip").read_bytes()
    (tmp_path / "ada.zip").write_bytes(content.replace(b"notes.md#", b"notes.md\0"))
    assert has_line_with(faults(tmp_path / "ada.zip"), "notes.md", "differs between systems")


def test_a_zip_that_claims_more_than_it_contains_is_refused(package: Path, tmp_path: Path) -> None:
    write_zip(package, tmp_path / "ada.zip")
    with zipfile.ZipFile(tmp_path / "ada.zip", "a") as archive:
        archive.writestr("ada/large.md", "0")
        claimed = archive.infolist()[-1]
        claimed.file_size = claimed.compress_size = 10**9
    message = faults(tmp_path / "ada.zip")
    assert "the archive is smaller than the files" in message
    assert "large.md" not in message  # none of them is read


def test_a_zip_with_too_many_files_is_refused(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_zip(package, tmp_path / "ada.zip")
    with zipfile.ZipFile(tmp_path / "ada.zip") as archive:
        number = len(archive.infolist())
    monkeypatch.setattr(contents, "MAX_ENTRIES", number - 1)
    assert f"{number} entries, more than {number - 1}" in faults(tmp_path / "ada.zip")


def test_a_damaged_zip_never_causes_a_traceback_or_passes_as_valid(
    package: Path, tmp_path: Path
) -> None:
    """Five hundred seeded kinds of damage: bytes changed, removed and inserted."""
    archive, draw = tmp_path / "ada.zip", random.Random(0)
    write_zip(package, archive)
    whole = archive.read_bytes()
    for _ in range(500):
        damaged = bytearray(whole)
        start = draw.randrange(len(whole))
        damaged[start : start + draw.choice((0, 1, 1, 4, 900))] = draw.randbytes(
            draw.choice((0, 1, 4))
        )
        archive.write_bytes(damaged)
        try:
            checked = check_package(archive)
        except UserError:
            continue
        with open_contents(archive) as found:  # such as a date
            for name, file in checked.files.files.items():
                content = found.entries[name].open().read()
                assert hashlib.sha256(content).hexdigest() == file.sha256


def test_a_truncated_zip_is_refused(package: Path, tmp_path: Path) -> None:
    write_zip(package, tmp_path / "ada.zip")
    truncate(tmp_path / "ada.zip")
    assert "ada.zip: not a ZIP" in faults(tmp_path / "ada.zip")


def test_a_byte_changed_in_the_zip_is_named(package: Path, tmp_path: Path) -> None:
    archive = tmp_path / "ada.zip"
    write_zip(package, archive)
    content = archive.read_bytes()
    archive.write_bytes(content.replace(b"# Ada\n", b"# Bob\n"))
    assert has_line_with(faults(archive), "README.md", "cannot be read")  # its CRC


def test_the_zip_does_not_depend_on_umask_or_file_times(
    package: Path, copy: Path, tmp_path: Path
) -> None:
    write_zip(package, tmp_path / "one.zip")
    for path in copy.rglob("*"):
        path.chmod(0o700)
        os.utime(path, (1, 1))
    write_zip(copy, tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        for entry in archive.infolist():
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)
            assert (entry.create_system, entry.external_attr >> 16) == (3, stat.S_IFREG | 0o644)


def test_the_adapter_fits_the_base_it_was_trained_on(package: Path, tiny_base: Path) -> None:
    verify(package, base=str(tiny_base))


def test_the_base_revision_option_reaches_the_check(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Pretrained] = []
    monkeypatch.setattr(packaging, "check_fits", lambda _, base: asked.append(base))
    verify(package, base="org/base", base_revision="v2")
    assert asked == [Pretrained("base", "org/base", "v2")]


def test_the_command_says_what_it_checked(package: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Weights and config, base, card and provenance, a sample; A and B of 20 layers."""
    with caplog.at_level(logging.INFO, "higgs_pipe"):
        verify(package)
    assert caplog.messages == [f"{package}: 6 files as packaged, 40 tensors"]


def test_an_adapter_of_another_shape_is_refused_and_its_tensors_named(
    package: Path, tmp_path: Path
) -> None:
    miniature.build(tmp_path / "wider", hidden_size=128, num_layers=2)
    with pytest.raises(UserError) as error:
        verify(package, base=str(tmp_path / "wider"))
    assert has_line_with(str(error.value), "lora_A", "[2, 64]", "[2, 128]")


def test_a_base_with_changed_weights_is_refused_with_the_commit_to_pin(
    copy: Path, tiny_base: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(tiny_base, tmp_path / "moved"))
    weights = moved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    pinned = PinnedModel.read(copy / BASE_FILE).model_copy(update={"revision": "0123abc"})
    pinned.write(copy / BASE_FILE)
    for name in ("files.json", "SHA256SUMS"):
        (copy / name).unlink()
    seal(copy)
    with pytest.raises(UserError, match=rf"moved.*{pinned.fingerprint[:12]}.*revision 0123abc"):
        verify(copy, base=str(moved))


def test_hub_weights_are_checked_at_the_given_revision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are compared by the hashes on the Hub, which small files lack."""
    asked: list[Any] = []

    class Hub:
        def model_info(self, name: str, **options: Any) -> Any:
            asked.append((name, options))
            hashes = {"1.safetensors": "ab", "README.md": None, "2.safetensors": "cd"}
            lfs = {
                name: sha256 and SimpleNamespace(sha256=sha256) for name, sha256 in hashes.items()
            }
            return SimpleNamespace(
                siblings=[SimpleNamespace(rfilename=name, lfs=of) for name, of in lfs.items()]
            )

    monkeypatch.setattr(fitting, "HfApi", Hub)
    found = fitting._fingerprint(Pretrained("base", "ada/base", "v2"))
    assert found == hashlib.sha256(b"ab  1.safetensors\ncd  2.safetensors\n").hexdigest()
    assert asked == [("ada/base", {"revision": "v2", "files_metadata": True})]


def reseal(package: Path, **config: Any) -> None:
    """Change settings of the adapter and recompute the hashes, as an attacker could."""
    path = package / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    for name in ("files.json", "SHA256SUMS"):
        (package / name).unlink()
    seal(package)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"target_modules": ".*q_proj"}, "target_modules"),
        ({"exclude_modules": ".*q_proj"}, "exclude_modules"),
        ({"modules_to_save": [".*q_proj"]}, "modules_to_save"),
        ({"layers_to_transform": [0], "layers_pattern": "l.*"}, "layers_pattern"),
        ({"rank_pattern": {".*q_proj": 4}}, "rank_pattern"),
        ({"alpha_pattern": {".*q_proj": 4}}, "alpha_pattern"),
    ],
)
def test_layers_given_as_a_regular_expression_are_refused(
    copy: Path, tiny_base: Path, config: dict[str, Any], key: str
) -> None:
    """PEFT matches it against every layer name, which a malicious one can stretch to hours."""
    reseal(copy, **config)
    with pytest.raises(UserError) as error:
        verify(copy, base=str(tiny_base))
    assert has_line_with(str(error.value), key)


def test_a_config_that_is_not_an_object_is_named(copy: Path) -> None:
    (copy / "adapter_config.json").write_text("[]")
    for name in ("files.json", "SHA256SUMS"):
        (copy / name).unlink()
    seal(copy)
    assert has_line_with(faults(copy), "adapter_config.json", "not a JSON object")


@pytest.mark.parametrize(
    ("config", "fact"),
    [
        ({"target_modules": ["no_such_layer"]}, "no_such_layer"),
        ({"r": 2**62}, "overflow"),
        ({"bias": "x"}, "bias"),
        ({"layer_replication": [[0, 9]]}, "out of range"),
        ({"megatron_config": {"a": 1}}, "megatron"),
    ],
)
def test_an_adapter_config_that_does_not_fit_the_base_is_refused(
    copy: Path, tiny_base: Path, config: dict[str, Any], fact: str
) -> None:
    reseal(copy, **config)
    with pytest.raises(UserError, match=rf"adapter_config\.json does not fit .*{fact}"):
        verify(copy, base=str(tiny_base))


def test_missing_and_surplus_adapter_tensors_are_named(copy: Path, tiny_base: Path) -> None:
    save_file({"nothing": torch.zeros(1)}, copy / WEIGHTS)
    for name in ("files.json", "SHA256SUMS"):
        (copy / name).unlink()
    seal(copy)
    with pytest.raises(UserError) as error:
        verify(copy, base=str(tiny_base))
    assert has_line_with(str(error.value), "nothing", "no place")
    assert has_line_with(str(error.value), "lora_B", "missing")
