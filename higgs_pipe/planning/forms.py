"""The forms of a package: the files of each, and a check before the run that it can be made."""

import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from higgs_pipe.errors import UserError
from higgs_pipe.planning import bases
from higgs_pipe.planning.checkpoint_files import read_header, read_object
from higgs_pipe.planning.model_types import BUNDLED_CODECS, V3
from higgs_pipe.planning.user_files import UnfitFileError

PEFT, FULL_FORMS = "peft", ("merged", "original")
IMPOSSIBLE = ((V3, "original"),)  # model_type and form
EXPERIMENT = "{experiment}"  # in push.repo
NUM_BYTES = {"bfloat16": 2, "float32": 4}


def outputs(config: Mapping[str, Any], families: Mapping[str, str]) -> list[str]:
    """Return the outputs of the target ``package``: the archive or the folder of each form.

    Args:
        config: The complete config.
        families: By experiment, the ``model_type`` of its base, or a model on the Hub whose family
            is not yet known.
    """
    return [
        f"<results>/adapters/{name}.zip" if form == PEFT else f"<results>/{form}/{name}"
        for form, name in _made(config, families, "package")
    ]


def pushed(config: Mapping[str, Any], families: Mapping[str, str]) -> list[str]:
    """Return the outputs of the target ``push``; arguments as for :func:`outputs`.

    Raises:
        UserError: No repository is named, or one for several experiments: told before training.
    """
    made = _made(config, families, "push")
    for form, name in made:
        repository_name(config["push"]["repo"], form, name, list(config["experiments"]))
    return [f"<results>/pushed/{form}/{name}.json" for form, name in made]


def repository_name(
    named: str | None, form: str, experiment: str, experiments: Sequence[str]
) -> str:
    """Return the repository of a form of an experiment's adapter.

    Raises:
        UserError: None is named, or one for several experiments.
    """
    if named is None:
        raise UserError("push.repo is null: name the repository on the Hub, as owner/name.")
    if len(experiments) > 1 and EXPERIMENT not in named:
        raise UserError(
            f"push.repo {named} is one repository for {len(experiments)} experiments; put "
            f"{EXPERIMENT} into its name, such as {named}-{EXPERIMENT}."
        )
    return named.replace(EXPERIMENT, experiment) + ("" if form == PEFT else f"-{form}")


def _made(
    config: Mapping[str, Any], families: Mapping[str, str], section: str
) -> list[tuple[str, str]]:
    """Return the forms of a section, each with the experiments whose family has it."""
    return [
        (form, name)
        for form in dict.fromkeys(config[section]["forms"])
        for name in config["experiments"]
        if (families[name], form) not in IMPOSSIBLE
    ]


def folder_of(form: str, experiment: str) -> str:
    """Return the folder of a form of an experiment's adapter."""
    return f"<results>/{'adapters' if form == PEFT else form}/{experiment}"


def left_out(config: Mapping[str, Any], families: Mapping[str, str]) -> list[str]:
    """Return a sentence for each form that is made for some but not all experiments."""
    made = _made(config, families, "package")
    lines = []
    for form in dict.fromkeys(config["package"]["forms"]):
        if others := [name for name in config["experiments"] if (form, name) not in made]:
            lines.append(
                f"package.forms: {form} is a form of Higgs Audio v2 and not made for "
                f"{', '.join(others)}, whose merged form has the published names already"
            )
    return lines


def check(config: Mapping[str, Any], results_dir: Path, families: Mapping[str, str]) -> None:
    """Check that every form to publish is made, and that the full checkpoints can be made.

    A base on the Hub that is not yet on this machine is checked by the merge itself.

    Args:
        config: The complete config.
        results_dir: The folder of results.
        families: As for :func:`outputs`.

    Raises:
        UserError: ``push.forms`` has a form that ``package.forms`` does not make, no experiment's
            family has a form, a base is quantized or not in safetensors files, or the disk has no
            room.
    """
    unmade = [f for f in config["push"]["forms"] if f not in (PEFT, *config["package"]["forms"])]
    if unmade:
        raise UserError(
            f"push.forms: {', '.join(unmade)} cannot be published, because package.forms "
            f"({', '.join(config['package']['forms'])}) does not make it. Add it there."
        )
    possible = _made(config, families, "package")
    if impossible := [f for f in config["package"]["forms"] if f not in dict(possible)]:
        form = impossible[0]
        raise UserError(
            f"package.forms: {form} is a form of Higgs Audio v2, and no experiment has such a "
            "base; the merged form of Higgs TTS 3 has the published names already. Leave it out."
        )
    missing = [
        (form, name)
        for form, name in possible
        if form != PEFT and not (results_dir / form / name).exists()
    ]
    forms_of: dict[tuple[str, str | None], list[str]] = {}
    for form, name in missing:
        forms_of.setdefault(bases.base_of(config, name), []).append(form)
    codec = checkpoint_folder(config["codec"], config["codec_revision"])
    codec_size = _codec_size(codec) if codec else 0
    needed = 0
    for (base, revision), made in forms_of.items():
        if folder := checkpoint_folder(base, revision):
            size = _num_weights_of(base, folder, made) * NUM_BYTES[config["package"]["dtype"]]
            copies = 0 if _model_type(folder) in BUNDLED_CODECS else made.count("merged")
            needed += len(made) * size + copies * codec_size
    place = next(path for path in (results_dir, *results_dir.resolve().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        listed = ", ".join(dict.fromkeys(form for form, _ in missing))
        raise UserError(
            f"package.forms: {len(missing)} full checkpoints ({listed}) take "
            f"{needed / 1e9:.1f} GB, but the disk of {results_dir} has {free / 1e9:.1f} GB free; "
            "make room, set forms: [peft], or move the results with pathvars."
        )


def _num_weights_of(base: str, folder: Path, made: Sequence[str]) -> int:
    """Return the number of values in a base's weights, from which these forms can be made.

    Raises:
        UserError: It is quantized or not in safetensors files.
    """
    listed = ", ".join(dict.fromkeys(made))
    if _is_quantized(folder):
        raise UserError(
            f"package.forms: {listed} of a quantized base_model ({base}) cannot be made: its "
            "weights are already rounded. Name the base that it was made from, or set forms: "
            "[peft]."
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(
            f"package.forms: {listed} need a base_model with safetensors files, and {base} has "
            "none; convert it, or set forms: [peft]."
        )
    return sum(map(num_weights, weights))


def checkpoint_folder(name: str, revision: str | None) -> Path | None:
    """Return the folder of a checkpoint: its own or its snapshot in the Hub's cache, if any."""
    if Path(name).is_dir():
        return Path(name)
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    repository = cache / f"models--{name.replace('/', '--')}"
    branch = repository / "refs" / (revision or "main")
    commit = branch.read_text(encoding="utf-8").strip() if branch.is_file() else revision or ""
    snapshot = repository / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() else None


def num_weights(path: Path, prefix: str = "") -> int:
    """Return the number of values in a safetensors file, by its header.

    Args:
        path: The file.
        prefix: Only tensors whose names begin with it count.
    """
    with _readable(path):
        header = read_header(path)
    return sum(math.prod(e["shape"]) for name, e in header.items() if name.startswith(prefix))


def _codec_size(folder: Path) -> int:
    """Return the bytes of the codec beside a merged checkpoint; from a bundle it is in float32."""
    files = list(folder.glob("*.safetensors"))
    if prefix := BUNDLED_CODECS.get(_model_type(folder)):
        return sum(num_weights(file, prefix) for file in files) * NUM_BYTES["float32"]
    return sum(file.stat().st_size for file in files)


def _model_type(folder: Path) -> str:
    return str(_config_of(folder).get("model_type"))


def _is_quantized(folder: Path) -> bool:
    return "quantization_config" in _config_of(folder)


def _config_of(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    with _readable(path):
        return read_object(path) if path.is_file() else {}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn an error on a file of a checkpoint into a :class:`UserError` that names it."""
    try:
        yield
    except (OSError, UnfitFileError) as error:
        fact = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else error
        raise UserError(f"{path} {fact}; copy the checkpoint again") from None
