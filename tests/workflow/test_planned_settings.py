"""Settings in the Snakefile: those it passes to stages and those it reads itself."""

import json
import os
import re
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # ships no types
import yaml
from helpers import ROOT
from workflow.forked_snakemake import run_snakemake
from workflow.stub_checkout import make_stub_checkout, snakemake, words_of_snakemake

from higgs_pipe.config.schema import json_schema
from higgs_pipe.planning.schemas import branch

SCHEMA = json_schema()
# Of which a setting takes the first that it allows and that is not its default.
VALUES = (
    *(True, False, 2, 3, 0.25, 0.75, 70, 9000, -3, -40, [0.5], [1, 2], ["text_of"]),
    "cpu",
    "bfloat16",
    "float32",
    "speaker",
    "reject",
    "gaussian",
    "linear",
    "stop_rate",
    "none",
    "8bit",
    "adamw_8bit",
    "better",
    ["audio_head"],
    ["merged"],
    "acme/model",
)
ENTRY: dict[str, Any] = {
    "path": "m.csv",
    "format": "tsv",
    "root": "a",
    "speaker": "b",
    "language": "de",
}
ENTRY |= {"split": "train", "columns": {"text": "words"}}
# Where the Snakefile checks more than the schema does.
GIVEN: dict[str, Any] = {
    "manifest": [ENTRY],
    "eval.other_manifest": [ENTRY | {"path": "other.csv"}],
    "train.accelerate_config": "own.yaml",
    "train.init_adapter": "results/experiments/b/train/adapter",
    "push.forms": ["merged"],
    "experiments": {"a": {"lora": {"r": 5}}, "b": {"init_adapter": None}},
}


def another_value(dotted: str, schema: Any) -> Any:
    """A value that a setting does not have by default."""
    if dotted in GIVEN:
        return GIVEN[dotted]
    allows = jsonschema.Draft202012Validator({**schema, "$defs": SCHEMA["$defs"]})
    default = schema.get("default")
    return next(v for v in VALUES if v != default and allows.is_valid(v))


def other_values(schema: Any, prefix: str = "") -> dict[str, Any]:
    """Return a non-default value for each setting of a section."""
    found = {}
    for key, declared in schema["properties"].items():
        dotted = f"{prefix}{key}"
        section = branch(declared, "object", SCHEMA)
        is_section = "properties" in section and dotted not in GIVEN
        found[key] = (
            other_values(section, f"{dotted}.") if is_section else another_value(dotted, declared)
        )
    return found


def part_of(config: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """The keys of a stage, each in its section."""
    part: dict[str, Any] = {}
    for dotted in keys:
        section, _, key = dotted.rpartition(".")
        if section:
            part.setdefault(section, {})[key] = config[section][key]
        else:
            part[key] = config[key]
    return part


def test_every_setting_reaches_the_config_of_each_stage_that_reads_it(tmp_path: Path) -> None:
    checkout = make_stub_checkout(tmp_path / "checkout")
    config = other_values(SCHEMA)
    (checkout / "own.yaml").write_text("num_processes: 2\nnum_machines: 1\n")
    (checkout / "config.yaml").write_text(yaml.safe_dump(config))
    files = [f"results/config/{stage}.json" for stage in SCHEMA["x-stages"]]
    others = [f"results/other/config/{stage}.json" for stage in ("list_rows", "validate")]
    run = snakemake(checkout, *files, *others, checkout=checkout)
    assert run.returncode == 0, run.stdout + run.stderr
    for stage, keys in SCHEMA["x-stages"].items():
        written = json.loads((checkout / f"results/config/{stage}.json").read_text())
        assert written == part_of(config, keys), stage
    # The other recordings are listed and judged in the same way, in one shard.
    config["manifest"] = config["eval"]["other_manifest"]
    config["data"]["num_shards"] = 1
    for stage in ("list_rows", "validate"):
        written = json.loads((checkout / f"results/other/config/{stage}.json").read_text())
        assert written == part_of(config, SCHEMA["x-stages"][stage]), stage


def planned(folder: Path, config: dict[str, Any], *words: str) -> dict[str, str]:
    """What a dry run shows of a job of each rule; of each experiment, by ``rule experiment``."""
    for name in ("m.jsonl", "other.jsonl"):
        (folder / name).touch()
    srun = folder / "bin/srun"  # as on a cluster
    srun.parent.mkdir()
    srun.touch(0o755)
    shipped = yaml.safe_load((ROOT / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**shipped, "manifest": "m.jsonl"} | config))
    path = {"PATH": f"{srun.parent}:{os.environ['PATH']}"}
    command = words_of_snakemake(ROOT, "-np", "--cores", "4", *words)
    run = run_snakemake(command, folder, os.environ | path)
    assert run.returncode == 0, run.stdout + run.stderr
    found = {}
    for job in re.split(r"\n(?:local)?(?:rule|checkpoint) ", run.stdout + run.stderr)[1:]:
        experiment = re.search(r"wildcards: .*\bexperiment=(\w+)", job)
        found[job.partition(":")[0] + (f" {experiment[1]}" if experiment else "")] = job
    return found


def test_job_resources_follow_the_settings(tmp_path: Path) -> None:
    launch: dict[str, Any] = {"num_processes": 4, "num_machines": 2, "device": "cpu"}
    launch |= {"main_process_ip": "10.0.0.1", "main_process_port": 3210}
    config: dict[str, Any] = {
        "data": {"num_shards": 3},
        "validate": {"speech_models": {"speaker": "some/model", "device": "cpu"}},
        "tokenize": {"device": "cpu"},
        "train": launch,
        "eval": {"num_processes": 3, "device": "cpu"},
        "package": {"forms": ["peft", "merged"]},
        "experiments": {"default": {}, "other": {"device": "cuda"}},
    }
    jobs = planned(tmp_path, config)
    shards = set(re.findall(r"recordings/(shard-\d+)", jobs["list_rows"]))
    assert shards == {f"shard-0000{number}" for number in range(3)}
    assert "mem_mb=16000" in jobs["measure_shard"]
    assert "threads:" not in jobs["tokenize_shard"]  # one, on a CPU
    # Two processes on each of two machines.
    assert "mem_mb=64000" in jobs["train_adapter default"]
    options = ("num_processes 4", "num_machines 2", "main_process_ip 10.0.0.1")
    for option in (*options, "main_process_port 3210"):
        assert f"--{option}" in jobs["train_adapter default"]
    assert "--num_processes 3" in jobs["eval_adapter default"]
    on_a_gpu = [name for name, job in jobs.items() if re.search(r"\bg(pu|res)=", job)]
    assert on_a_gpu == ["train_adapter other"]
    [asked] = re.findall("resources: (.*)", jobs["train_adapter other"])
    resources = dict(part.split("=") for part in asked.split(", "))
    machines = {"gres": "gpu:2", "nodes": "2", "tasks": "2", "tasks_per_gpu": "0", "mpi": "srun"}
    assert machines.items() <= resources.items()


def test_planned_outputs_follow_the_settings(tmp_path: Path) -> None:
    own, first = tmp_path / "own.yaml", "results/experiments/first/train/adapter"
    own.write_text("num_processes: 4\nnum_machines: 1\n")
    config: dict[str, Any] = {
        "validate": {"speech_models": {"device": "cpu"}},  # which are off
        "tokenize": {"device": "cuda"},
        "train": {"accelerate_config": str(own), "init_adapter": first},
        "eval": {"other_manifest": "other.jsonl"},
        "package": {"forms": ["merged"]},
        "push": {"forms": ["merged"], "repo": "ada/{experiment}"},
        "experiments": {"first": {"init_adapter": None}, "second": {}},
    }
    jobs = planned(tmp_path, config, "all", "push")
    assert "mem_mb=2000" in jobs["measure_shard"]  # without speech models
    assert "gpu=" not in jobs["measure_shard"]
    assert "gpu=1" in jobs["tokenize_shard"]
    assert "threads: 4" in jobs["tokenize_shard"]  # which decode for the GPU
    for name in ("first", "second"):
        assert f"--config_file {own}" in jobs[f"train_adapter {name}"]
        assert "form=merged" in jobs[f"push_adapter {name}"]
        assert f"merge_adapter {name}" in jobs
        assert f"eval_adapter_other {name}" in jobs
        assert f"package_adapter {name}" not in jobs
    ancestors = {name: first in jobs[f"train_adapter {name}"] for name in ("first", "second")}
    assert ancestors == {"first": False, "second": True}
    assert f"--ancestor-dir {first}" in jobs["eval_adapter second"]
