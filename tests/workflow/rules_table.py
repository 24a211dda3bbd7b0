"""What each rule reads, writes and runs, as Snakemake plans it for a config that uses every rule.

``PYTHONPATH=tests python -m workflow.rules_table > tests/workflow/rules.txt`` writes it anew.
"""

import contextlib
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from snakemake.api import SnakemakeApi
from snakemake.settings.types import (
    ConfigSettings,
    DAGSettings,
    OutputSettings,
    Quietness,
    ResourceSettings,
)

from higgs_pipe.planning import recordings, stages

ROOT = Path(__file__).parents[2]
CONFIG: dict[str, Any] = {
    "manifest": "m.jsonl",
    "validate": {"speech_models": {"asr": "some/recogniser"}},
    "tokenize": {"device": "cuda"},
    "train": {"num_processes": 2},
    "eval": {"num_processes": 3, "other_manifest": "other"},
    "package": {"forms": ["peft", "merged"]},
    "push": {"forms": ["peft", "merged"], "repo": "ada/{experiment}"},
    "experiments": {
        "a": {},
        "b": {
            "base_model": "resources/tiny-higgs-v3",
            "init_adapter": "results/experiments/a/train/adapter",
            "num_processes": 4,
        },
        "c": {"base_model": "bosonai/higgs-tts-2-3b-base"},
    },
}
# Of several jobs of a rule, those with these wildcards are shown.
SHOWN = {
    "experiment": ("b",),
    "base": ("bases/tiny-higgs-v3/", "bases/higgs-tts-2-3b-base/"),
    "shard": ("shard-00001",),
    "stage": ("train",),
}
OF_SNAKEMAKE = ("tmpdir", "mem", "mem_mib")  # resources
CONDA = "higgs-pipe.yaml"  # of every rule that runs something


def main() -> None:
    """Print the table."""
    for name, stage in stages.STAGES.items():
        stages.STAGES[name] = stage._replace(version=f"of {name}")  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("other").mkdir()
        for name in ("m.jsonl", "other/x.wav", "other/x.txt"):
            Path(name).touch()
        list_files("results/data", "m.jsonl")
        list_files("results/other/data", "other/x.txt")
        print("\n".join(line for job in planned_jobs(CONFIG) for line in lines_of(job)))


def list_files(folder: str, manifest: str) -> None:
    """Write what an earlier run has seen of a manifest, with a stamp of its own."""
    Path(folder).mkdir(parents=True)
    states = recordings.FileStates(f"of {folder}", manifests=recordings.states_of([manifest]))
    recordings.save_states(Path(folder, "recordings.json"), states)


def planned_jobs(config: dict[str, Any]) -> list[Any]:
    """Plan everything in the current folder; return the jobs that are shown."""
    with (
        contextlib.redirect_stdout(sys.stderr),
        SnakemakeApi(OutputSettings(dryrun=True, quiet={Quietness.ALL})) as api,
    ):
        workflow = api.workflow(
            ResourceSettings(cores=64),
            config_settings=ConfigSettings(config=config),
            snakefile=ROOT / "Snakefile",
        )
        plan = workflow.dag(DAGSettings(targets={"all", "push"}))
        plan.execute_workflow(pseudo_executor="dryrun")
        jobs = sorted(workflow._workflow.dag.jobs, key=words_of)
    shown = [job for job in jobs if all(v in SHOWN.get(n, v) for n, v in job.wildcards.items())]
    rules = {job.name for job in shown}
    return shown + [job for job in jobs if job.name not in rules]


def words_of(job: Any) -> list[str]:
    """Return the rule of a job and its wildcards."""
    return [job.name, *(f"{name}={value}" for name, value in sorted(job.wildcards.items()))]


def lines_of(job: Any) -> Iterator[str]:
    """Describe a job, a line per file and setting."""
    rule, command = job.rule, str(job.shellcmd or "")
    yield " ".join(words_of(job))
    facts = {
        "checkpoint": rule.is_checkpoint,
        "localrule": rule.name in rule.workflow._localrules,
        "group": rule.group,
        "retries": rule.restart_times,
        "conda": "" if str(rule.conda_env).endswith(CONDA) else rule.conda_env,
        "benchmark": job.benchmark,
        "threads": job.threads,
    }
    facts |= {n: v for n, v in job.resources.items() if n not in OF_SNAKEMAKE and n[0] != "_"}
    yield from (f"    {name}: {value}" for name, value in facts.items() if value)
    if "mem_mb" in facts:
        job.attempt = 2
        yield f"    mem_mb, tried again: {job.resources.mem_mb}"
    for kind in ("input", "output", "log"):
        files = getattr(job, kind)
        labels = {start: name for name, (start, _) in files._names.items()}
        label = kind
        for number, file in enumerate(files):
            label = labels.get(number, label)
            flags = getattr(file, "flags", {})
            yield f"    {kind}: " + " ".join([label, str(file), *sorted(flags)])
            if shown := flags.get("report"):
                caption = Path(str(shown.caption)).name
                parts = filter(None, [shown.category, caption, shown.labels, shown.patterns])
                yield "        in the report: " + ", ".join(map(str, parts))
    params = dict(job.params.items())
    command = command.replace(params.pop("environment", "none"), "ENVIRONMENT")
    if text := params.pop("text", None):
        command = command.replace(shlex.quote(text), "TEXT")
        settings = json.loads(text)
        params["text"] = {n: "..." if isinstance(v, dict) else v for n, v in settings.items()}
    for name, value in params.items():
        if str(value) not in command:
            yield f"    params: {name} {value}"
    if command:
        yield f"    shell: {command}".replace(str(ROOT), "ROOT")
    yield ""


if __name__ == "__main__":
    main()
