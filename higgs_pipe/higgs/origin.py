"""Training details of a model, from its files: base, codec, system message, text cleaning."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from higgs_pipe.config.settings import DEFAULT_SYSTEM_PROMPT
from higgs_pipe.errors import UserError
from higgs_pipe.higgs.pretrained import PinnedModel
from higgs_pipe.planning.checkpoint_files import read_object
from higgs_pipe.planning.user_files import UnfitFileError


@dataclass(frozen=True)
class AdapterOrigin:
    """Settings that an adapter was trained with; None if its files lack one."""

    base: str
    base_revision: str | None = None
    base_fingerprint: str | None = None
    codec: str | None = None
    codec_revision: str | None = None
    codec_fingerprint: str | None = None
    system_prompt: str = DEFAULT_SYSTEM_PROMPT
    clean_text: bool = True


class _Base(BaseModel):
    name: str
    revision: str | None
    fingerprint: str


class _Codec(BaseModel):
    codec: str
    revision: str | None
    fingerprint: str


class _PackSettings(BaseModel):
    system_prompt: str
    clean_text: bool


class _Pack(BaseModel):
    pack: _PackSettings


class _Config(BaseModel):
    pack: _Pack


class _Provenance(BaseModel):
    """The part of a package's ``provenance.json``, of any version, that generation needs."""

    base_model: _Base
    codec: _Codec
    config: _Config


def adapter_origin(adapter_dir: Path) -> AdapterOrigin:
    """Return the origin of a packaged adapter, or of the one in a training's results.

    A package names a local base or codec without its folder; ``models/`` of the results that the
    package lies in knows the folder. Elsewhere the codec is None: it is the base's own.

    Raises:
        UserError: The directory holds no adapter, or a damaged file.
    """
    config_path = adapter_dir / "adapter_config.json"
    try:
        base = read_object(config_path)["base_model_name_or_path"]
        if not isinstance(base, str):
            raise UnfitFileError(f"names the base {base!r:.30}")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{adapter_dir} holds no adapter_config.json; name the directory of a PEFT adapter, "
            "for example results/adapters/default."
        ) from None
    except (UnfitFileError, KeyError) as error:
        raise UserError(f"{config_path} is damaged ({error!r}); train the adapter again.") from None
    path = adapter_dir / "provenance.json"
    if not path.is_file():
        return AdapterOrigin(base)
    try:
        provenance = _Provenance.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8, or not such an object
        raise UserError(
            f"{path} is damaged: {error}\nrun: snakemake --forcerun package_adapter"
        ) from None
    results = adapter_dir.resolve().parents[1:2]
    named, codec = provenance.base_model, provenance.codec
    base_folder = _pinned_folder(results, "base_model", named.fingerprint)
    codec_folder = _pinned_folder(results, "codec", codec.fingerprint)
    is_codec_found = codec.revision is not None or Path(codec.codec).is_dir()
    return AdapterOrigin(
        base=base_folder or named.name,
        base_revision=provenance.base_model.revision,
        base_fingerprint=provenance.base_model.fingerprint,
        codec=codec_folder or (codec.codec if is_codec_found else None),
        codec_revision=provenance.codec.revision,
        codec_fingerprint=provenance.codec.fingerprint,
        system_prompt=provenance.config.pack.pack.system_prompt,
        clean_text=provenance.config.pack.pack.clean_text,
    )


def _pinned_folder(results: Sequence[Path], setting: str, fingerprint: str) -> str | None:
    """Return the checkpoint that results were made with, if it has these weights."""
    for folder in results:
        try:
            pinned = PinnedModel.read(folder / "models" / f"{setting}.json")
        except (OSError, UserError):
            return None
        if pinned.fingerprint == fingerprint:
            return pinned.name
    return None
