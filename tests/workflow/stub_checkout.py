"""A checkout of the real workflow whose stages are stubs, for tests about the rules alone."""

import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from helpers import ROOT
from workflow.forked_snakemake import run_snakemake

# Writes every output that its options name. A shard holds the manifest's lines of its digit (of
# what is measured: their first letters); what is made from files holds their text, what is trained
# its settings.
STUB = """
import json, sys
from pathlib import Path
stage, words = Path(sys.argv[0]).stem, sys.argv[1:]
options = {w[2:]: words[i + 1] for i, w in enumerate(words) if w.startswith("--")}
def read(path):
    return Path(path).read_text()
def write(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
def write_shards(folder, lines):
    for shard in range(2):
        text = "\\n".join(line for line in lines if line.startswith(str(shard)))
        write(Path(folder) / f"shard-{shard:05d}.parquet", text)
if stage == "list_rows":
    manifest = json.loads(read(options["config"]))["manifest"]
    for url, folder in json.loads(options["fetched"]).items():
        manifest = manifest.replace(url, folder)
    lines = read(manifest).splitlines()
    write(options["rows"], "\\n".join(lines))
    write_shards(options["recordings-dir"], [line[:3] for line in lines])
elif stage == "measure":
    write(options["measured"], read(options["recordings"]))
elif stage == "validate":
    lines = read(options["rows"]).splitlines()
    for name in ("clips", "rejected", "validation"):
        write(options[name], "\\n".join(lines))
    write_shards(options["shards-dir"], [line[:3] for line in lines])
elif stage == "clips_page":
    write(options["page"], "")
elif stage == "estimate":
    write(options["estimate"], read(options["config"]))
elif stage == "pin_model":
    folder = Path(json.loads(read(options["config"]))[options["setting"]])
    write(options["pinned"], "".join(map(read, sorted(folder.glob("*.safetensors")))))
elif stage == "tokenize_audio":
    write(options["codes"], read(options["shard-clips"]) + read(options["pinned-codec"]))
elif stage == "pack":
    for name in ("train-rows", "eval-rows", "packing"):
        write(options[name], read(options["clips"]) + read(options["pinned-base"]))
elif stage == "train":
    text = options["overrides"] + read(options["config"])
    for name in ("adapter_model.safetensors", "adapter_config.json", "base_model.json"):
        write(Path(options["adapter-dir"]) / name, text)
    for name in ("metrics.jsonl", "preflight.json", "config.json", "run.json",
                 "trainable_parameters.json"):
        write(Path(options["output-dir"]) / name, text)
elif stage == "evaluate":
    for name in ("metrics.json", "clips.parquet", "breakdown.json", "generation.json",
                 "generation.parquet", "verdict.json"):
        write(Path(options["eval-dir"]) / name, read(options["config"]))
    write(Path(options["samples-dir"]) / "01-base.wav", "")
elif stage == "accept":
    write(options["accepted"], read(options["config"]))
elif stage == "package":
    write(Path(options["package-dir"]) / "README.md", options["name"])
    write(options["archive"], "")
elif stage == "report":
    write(options["page"], "")
    write(Path(options["figures"]) / "total-loss.svg", "")
elif stage == "miniature":
    write(Path(options["output-dir"]) / "config.json", "{}")
write(options["log"], stage)
"""

# Accelerate alone would take seconds to import.
LAUNCHER = """
import os, sys
os.execv(sys.executable, [sys.executable, *sys.argv[sys.argv.index("-m"):]])
"""


def make_stub_checkout(checkout: Path, has_launcher: bool = False) -> Path:
    """Copy the rules and their imports; every stage is a stub that computes nothing.

    So is the launcher, which starts one process, unless the real one is asked for.
    """
    checkout.mkdir()
    for name in ("Snakefile", "workflow", "profiles", "envs"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, checkout / name)
    (checkout / "examples" / "demo").mkdir(parents=True)
    shutil.copy(ROOT / "examples/demo/settings.yaml", checkout / "examples/demo")
    package = checkout / "higgs_pipe"
    (package / "higgs" / "v2").mkdir(parents=True)
    (package / "training").mkdir()
    for name in ("__init__.py", "errors.py", "cli.py", "training/launch.py"):
        shutil.copy(ROOT / "higgs_pipe" / name, package / name)
    if not has_launcher:
        (package / "training/launch.py").write_text(LAUNCHER)
    shutil.copytree(ROOT / "higgs_pipe" / "planning", package / "planning")
    data_stages = (
        "list_rows",
        "measure",
        "validate",
        "clips_page",
        "estimate",
        "tokenize_audio",
        "pack",
        "pin_model",
    )
    for name in (*data_stages, "train", "evaluate", "accept", "package", "report"):
        (package / f"{name}.py").write_text(STUB)
    (package / "higgs" / "v2" / "miniature.py").write_text(STUB)
    (checkout / "m.jsonl").write_text("0 a\n1 a\n")
    write_config(checkout, manifest="m.jsonl")
    return checkout


def write_config(folder: Path, **settings: object) -> None:
    """Write the shipped ``config.yaml`` with other sections."""
    shipped = yaml.safe_load((ROOT / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**shipped, **settings}))


def snakemake_command(checkout: Path, *words: str) -> list[str]:
    """Snakemake of a checkout, to be run in any folder."""
    return [sys.executable, "-m", "snakemake", *words_of_snakemake(checkout, *words)]


def words_of_snakemake(checkout: Path, *words: str) -> list[str]:
    return ["--snakefile", str(checkout / "Snakefile"), *words]


def snakemake(cwd: Path, *words: str, checkout: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run Snakemake to its end."""
    return run_snakemake(words_of_snakemake(checkout, *words), cwd)
