"""What the Snakefile needs: the checked config, each stage's part of it, and how to launch.

Imports only the standard library and what every Snakemake installation brings, so that an
environment that holds Snakemake and nothing else can plan the workflow.
"""

import copy
import difflib
import json
import math
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # ships no types
import yaml

from higgs_pipe.errors import UserError, list_offenders

# Bump a number when the stage's output changes: Snakemake does not see edits to modules that a
# rule runs with `python -m`, but it reruns a rule whose parameters changed.
STAGE_VERSIONS: dict[str, int] = {
    "tiny": 1,
    "list_rows": 1,
    "measure": 2,
    "validate": 4,
    "estimate": 1,
    "tokenize": 2,
    "pack": 2,
    "train": 4,
    "eval": 1,
    "package": 1,
    "report": 2,
}

# What a folder that is a manifest may hold, beside transcripts.
FOLDER_MANIFESTS = (
    *("wav.scp", "text", "utt2spk", "segments"),
    *("metadata.json", "metadata.jsonl", "metadata.csv"),
)

EXIT_USER_ERROR = 2
DEFAULT_PORT = 29500
SNAKEMAKE_KEYS = ("pathvars",)  # Snakemake itself reads and checks these parts of the config.
MAX_VALUE_CHARS = 60
TYPE_NAMES = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "a whole number",
    "null": "null",
    "number": "a finite number",
    "object": "a section of keys",
    "string": "text",
}

Schema = Mapping[str, Any]
KeyPath = tuple[str, ...]


def _is_finite_number(_: Any, value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine("number", _is_finite_number),
)


def load_schema(schema_path: Path) -> dict[str, Any]:
    """The schema of ``config.yaml``, generated from :mod:`higgs_pipe.config`."""
    schema: dict[str, Any] = yaml.safe_load(schema_path.read_text(encoding="utf-8"))
    return schema


def load_config(config: Mapping[str, Any], schema_path: Path) -> dict[str, Any]:
    """The user's config, checked and complete.

    Text that stands for a number is read as one where the schema asks for a number: YAML 1.1
    takes ``2e-4`` for text, and ``--config train={learning_rate: 1e-4}`` gives only text.
    Missing keys get their defaults, except in ``experiments``, whose entries override parts of
    ``train``.

    Args:
        config: What Snakemake read from ``config.yaml`` and the command line.
        schema_path: ``workflow/schemas/config.schema.yaml``.

    Raises:
        UserError: Keys are unknown or missing, or values have the wrong type or are out of
            bounds; the message lists the first 20 and counts the rest.
    """
    schema = load_schema(schema_path)
    own = {key: value for key, value in config.items() if key not in SNAKEMAKE_KEYS}
    own = _coerced(own, schema, schema)
    errors = sorted(_Validator(schema).iter_errors(own), key=lambda error: str(error.json_path))
    faults = list(dict.fromkeys(fault for error in errors for fault in _faults(error, schema)))
    if faults:
        raise UserError(
            f"The config is refused, {len(faults)} fault{'s' * (len(faults) > 1)}:\n"
            f"{list_offenders(faults)}\n"
            "Mend config.yaml (or what --config and --configfile give) and run snakemake again."
        )
    _fill_defaults(own, schema, schema)
    return {**own, **{key: config[key] for key in SNAKEMAKE_KEYS if key in config}}


def load_config_or_exit(config: Mapping[str, Any], schema_path: Path) -> dict[str, Any]:
    """:func:`load_config`, but a refused config ends Snakemake with exit code 2."""
    try:
        return load_config(config, schema_path)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(EXIT_USER_ERROR) from None


def stage_config_text(config: Mapping[str, Any], stage: str, schema: Schema) -> str:
    """The JSON text of the keys that ``stage`` reads: equal settings give equal text."""
    part: dict[str, Any] = {}
    for dotted in schema["x-stages"][stage]:
        *sections, key = dotted.split(".")
        source, target = config, part
        for section in sections:
            source, target = source[section], target.setdefault(section, {})
        target[key] = source[key]
    return json.dumps(part, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)


def manifests(config: Mapping[str, Any]) -> list[str]:
    """The files that the manifests consist of; a change of one is a reason to validate again.

    A manifest that is a folder stands for the files in it that a reader looks at: those of Kaldi,
    the metadata and the transcripts. A file that is missing is named too.
    """
    manifest = config["manifest"]
    entries = manifest if isinstance(manifest, list) else [manifest]
    paths = [Path(entry if isinstance(entry, str) else entry["path"]) for entry in entries]
    files: dict[str, None] = {}
    for path in paths:
        folder = path.parent if path.name == "metadata.json" else path
        if folder.is_dir():
            found = [folder / name for name in FOLDER_MANIFESTS if (folder / name).is_file()]
            files |= dict.fromkeys(map(str, [*found, *sorted(folder.rglob("*.txt"))]))
        else:
            files[str(path)] = None
    return list(files)


def shard_names(num_shards: int) -> list[str]:
    """``shard-00000``, ``shard-00001``, ..."""
    return [f"shard-{index:05d}" for index in range(num_shards)]


def is_within(path: str, folder: str) -> bool:
    """Whether ``path`` is ``folder`` or lies below it; neither need exist."""
    return Path(path).resolve().is_relative_to(Path(folder).resolve())


def train_setting(config: Mapping[str, Any], experiment: str, key: str) -> Any:
    """A top-level key of ``train`` as this experiment has it."""
    return {**config["train"], **config["experiments"][experiment]}[key]


def overrides_text(config: Mapping[str, Any], experiment: str) -> str:
    """The JSON text of what an experiment overrides in ``train``."""
    return json.dumps(config["experiments"][experiment], sort_keys=True, allow_nan=False)


def num_gpus(device: str, num_processes: int = 1) -> int:
    """GPUs that a job asks for: one a process, none when its section says ``device: cpu``."""
    return 0 if device == "cpu" else num_processes


def runs_speech_models(config: Mapping[str, Any]) -> bool:
    """Whether validation listens with models, and so may want a GPU and their memory."""
    models = config["validate"]["speech_models"]
    return any(models[name] is not None for name in ("asr", "quality", "speaker"))


def launch_settings(config: Mapping[str, Any], experiment: str) -> dict[str, Any]:
    """How the training of one experiment is launched.

    Returns:
        ``num_processes`` and ``num_machines``, and the other settings of ``train`` that
        :func:`launch_command` takes. Where ``accelerate_config`` is set, the numbers are that
        file's.

    Raises:
        UserError: That file cannot be read or does not say how many processes.
    """
    keys = ("num_processes", "num_machines", "main_process_ip", "main_process_port")
    settings = {key: train_setting(config, experiment, key) for key in keys}
    path = train_setting(config, experiment, "accelerate_config")
    if path is not None:
        try:
            given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            settings |= {key: int(given[key]) for key in ("num_processes", "num_machines")}
        except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"train.accelerate_config: {path} is no file of `accelerate config` with "
                f"num_processes and num_machines ({error!r})"
            ) from None
    return settings | {"accelerate_config": path}


def launch_command(
    num_processes: int,
    num_threads: int,
    config_path: Path,
    num_machines: int = 1,
    main_process_ip: str | None = None,
    main_process_port: int | None = None,
    accelerate_config: str | None = None,
) -> str:
    """``accelerate launch`` and its options, up to the module.

    Every option that Accelerate would otherwise guess is given, and so is the file of defaults:
    without it, one in the user's home folder would quietly change the run. Mixed precision is
    "no" because the base is cast once, by ``train.dtype``: autocast would cast it again at each
    call, and the adapter with it.

    Args:
        num_processes: Processes to start, over all machines.
        num_threads: CPU threads for all of them together, on one machine.
        config_path: ``workflow/accelerate.yaml``.
        num_machines: With several, ``srun`` starts the launcher on each.
        main_process_ip: The first machine's address; None asks Slurm.
        main_process_port: Its port.
        accelerate_config: The user's own file: it alone says how to launch.
    """
    srun = f"srun --nodes={num_machines} --ntasks={num_machines} --ntasks-per-node=1"
    launcher = f"{srun} python" if num_machines > 1 else "python"
    threads_per_process = max(1, num_threads * num_machines // num_processes)
    options = [
        f"--config_file {shlex.quote(accelerate_config or str(config_path))}",
        f"--num_cpu_threads_per_process {threads_per_process}",
    ]
    if accelerate_config is None:
        options += [
            f"--num_processes {num_processes} --num_machines {num_machines}",
            "--mixed_precision no --dynamo_backend no",
        ]
        if num_processes > 1:
            # Also the way to several CPU processes; port 0 lets launches on one machine coexist.
            port = main_process_port or (0 if num_machines == 1 else DEFAULT_PORT)
            options.append(f"--multi_gpu --main_process_port {port}")
        if main_process_ip is not None:
            options.append(f"--main_process_ip {shlex.quote(main_process_ip)}")
    return " ".join([f"{launcher} -m higgs_pipe.launch", *options])


def shell_prefix(root: Path, in_own_environment: bool) -> str:
    """What each job's shell command starts with.

    Args:
        root: The checkout; jobs import ``higgs_pipe`` from it, also in a conda environment.
        in_own_environment: Jobs run with Snakemake's own Python rather than conda's; then its
            folder leads the PATH, so that ``.venv/bin/snakemake`` works without activation.
    """
    prefix = f"export PYTHONPATH={shlex.quote(str(root))}; "
    if in_own_environment:
        prefix += f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"; '
    return prefix.replace("{", "{{").replace("}", "}}")  # Snakemake formats it


def closing_lines(results_dir: Path, experiments: Sequence[str]) -> list[str]:
    """Where the adapters, their metrics and the report are; only those that exist."""
    products = [
        (label, path)
        for name in experiments
        for label, path in (
            (f"adapter {name}", results_dir / "adapters" / name),
            (f"metrics {name}", results_dir / "experiments" / name / "eval" / "metrics.json"),
        )
    ]
    products.append(("report", results_dir / "report" / "index.html"))
    width = max(len(label) for label, _ in products)
    return [f"{label:<{width}}  {path}" for label, path in products if path.exists()]


def _resolved(schema: Schema, root: Schema) -> Schema:
    """``schema`` with its ``$ref`` followed."""
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    return schema


def _branches(schema: Schema, root: Schema) -> list[Schema]:
    """The alternatives of a schema, resolved; often there is one."""
    schema = _resolved(schema, root)
    return [_resolved(branch, root) for branch in schema.get("anyOf", [schema])]


def _types(schema: Schema, root: Schema) -> set[str]:
    """The JSON types that a schema allows."""
    return {branch["type"] for branch in _branches(schema, root) if "type" in branch}


def _branch(schema: Schema, kind: str, root: Schema) -> Schema:
    """The alternative of ``schema`` that describes an ``object`` or an ``array``."""
    fitting = [branch for branch in _branches(schema, root) if branch.get("type") == kind]
    return fitting[0] if fitting else {}


def _coerced(value: Any, schema: Schema, root: Schema) -> Any:
    """``value`` with text read as the number, truth value or null that ``schema`` asks for."""
    types = _types(schema, root)
    if value is None and types == {"object"}:
        return {}  # a section whose keys are all commented out
    if isinstance(value, Mapping):
        section = _branch(schema, "object", root)
        properties, other = section.get("properties", {}), section.get("additionalProperties")
        other = other if isinstance(other, Mapping) else {}
        return {
            str(key): _coerced(item, properties.get(str(key), other), root)
            for key, item in value.items()
        }
    if isinstance(value, list):
        items = _branch(schema, "array", root).get("items", {})
        return [_coerced(item, items, root) for item in value]
    if isinstance(value, str) and ("string" not in types or (value == "null" and "null" in types)):
        value = _scalar(value)
    if types == {"integer"} and isinstance(value, float) and value.is_integer():
        return int(value)
    if types == {"number"} and type(value) is int and abs(value) < 2**53:
        return float(value)  # 1 and 1.0 are one setting: no rerun for it
    return value


def _scalar(text: str) -> Any:
    """The number, truth value or null that ``text`` spells, or else the text."""
    words = {"true": True, "false": False, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _fill_defaults(section: dict[str, Any], schema: Schema, root: Schema) -> None:
    for key, declared in schema.get("properties", {}).items():
        if key not in section and "default" in declared:
            section[key] = copy.deepcopy(declared["default"])
        value = section.get(key)
        if isinstance(value, dict):
            _fill_defaults(value, _branch(declared, "object", root), root)
        elif isinstance(value, list):
            items = _branch(declared, "array", root).get("items", {})
            for item in value:
                if isinstance(item, dict):
                    _fill_defaults(item, _branch(items, "object", root), root)


def _faults(error: Any, root: Schema) -> Iterator[str]:
    """One line for each thing that a jsonschema ``ValidationError`` stands for."""
    path: KeyPath = tuple(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        for key in error.instance:
            if key not in known:
                yield f"{'.'.join([*path, key])}: unknown key{_hint(path, key, known, root)}"
    elif error.validator == "required":
        for key in error.validator_value:
            if key not in error.instance:
                meaning = error.schema["properties"][key].get("description", "")
                yield f"{'.'.join([*path, key])}: missing. {meaning}".rstrip()
    elif error.validator == "anyOf" and (fitting := _branch_of_right_type(error)):
        for inner in fitting:
            yield from _faults(inner, root)
    else:
        yield f"{'.'.join(path)}: {_requirement(error, root)}, not {_shown(error.instance)}"


def _branch_of_right_type(error: Any) -> list[Any]:
    """The faults within the alternative that ``error``'s value was meant to be, if any."""
    wrong = {e.schema_path[0] for e in error.context if e.validator == "type" and not e.path}
    return [e for e in error.context if e.schema_path[0] not in wrong]


def _requirement(error: Any, root: Schema) -> str:
    """What a value must be, as the rest of a sentence."""
    limit = error.validator_value
    if error.validator == "pattern" and "propertyNames" in error.absolute_schema_path:
        return "names hold letters, digits, '.', '_' and '-' only, a letter or digit first"
    match error.validator:
        case "type" | "anyOf":
            kinds = _types(error.schema, root)
            return "must be " + " or ".join(TYPE_NAMES[kind] for kind in sorted(kinds))
        case "enum":
            return "must be one of " + ", ".join(map(str, limit))
        case "minimum":
            return f"must be at least {limit}"
        case "maximum":
            return f"must be at most {limit}"
        case "exclusiveMinimum":
            return f"must be above {limit}"
        case "exclusiveMaximum":
            return f"must be below {limit}"
        case "minLength" | "minItems" | "minProperties":
            return "must not be empty"
        case "not":
            return str(limit.get("description", "is not allowed"))
    return re.sub(r"\s+", " ", error.message)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_VALUE_CHARS else text[: MAX_VALUE_CHARS - 3] + "..."


def _hint(path: KeyPath, key: str, siblings: Sequence[str], root: Schema) -> str:
    """Which key was meant: the closest one of the same section, or that name in another."""
    names = list(_key_paths(root, root))
    if path[:1] == ("experiments",):  # an experiment has the keys of `train`
        names = [(*path[:2], *name[1:]) for name in names if name[0] == "train"]
    meant = [(*path, close) for close in difflib.get_close_matches(key, siblings, n=1)]
    meant = meant or [name for name in names if name[-1] == key]
    if meant:
        return f"; did you mean {' or '.join('.'.join(name) for name in meant)}?"
    return f"; known here: {', '.join(siblings)}"


def _key_paths(schema: Schema, root: Schema, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Every key of the config, sections and settings."""
    for key, declared in schema.get("properties", {}).items():
        yield (*path, key)
        yield from _key_paths(_resolved(declared, root), root, (*path, key))
