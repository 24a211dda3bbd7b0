"""Another workflow that imports this one as a module: it gets the rules, and nothing else."""

import os
from pathlib import Path

import pytest
import yaml
from leftovers import MARK
from workflow.stub_checkout import make_stub_checkout, snakemake

pytestmark = pytest.mark.slow

HOST = """
configfile: "config.yaml"


module higgs:
    snakefile:
        "../check out/Snakefile"
    config:
        config["higgs"]


rule count:
    input:
        clips="results/data/clips.parquet",
    output:
        "own/{stage}.txt",
    shell:
        "env > environment.txt; python -c 'import sys; print(sys.path)' > path.txt;"
        " wc -l < {input.clips} > {output}"


rule own:
    default_target: True
    input:
        "own/first.txt",


use rule * from higgs as higgs_*
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workflow of its own, after a run to its own target; the stages are stubs."""
    folder = tmp_path_factory.mktemp("host")
    make_stub_checkout(folder / "check out")
    own = folder / "own workflow"
    own.mkdir()
    (own / "Snakefile").write_text(HOST)
    (own / "m.jsonl").write_text("0 a\n1 a\n")
    base = "resources/tiny-higgs"
    settings = {"manifest": "m.jsonl", "base_model": base, "codec": f"{base}/audio_tokenizer"}
    (own / "config.yaml").write_text(yaml.safe_dump({"higgs": settings}))
    run = snakemake(own, "--cores", "2", checkout=own)
    assert run.returncode == 0, run.stdout + run.stderr
    (own / "terminal.txt").write_text(run.stderr)
    assert not (own / "results/codes").exists()  # what its own target does not need
    return own


def test_the_default_target_of_the_host_workflow_is_kept(host: Path) -> None:
    assert (host / "own/first.txt").read_text().strip() == "1"


def test_jobs_of_the_host_workflow_keep_their_environment(host: Path) -> None:
    lines = (host / "environment.txt").read_text().splitlines()
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    assert found["PATH"] == os.environ["PATH"]
    assert found.get("PYTHONPATH") == os.environ.get("PYTHONPATH")
    assert [name for name in found if name.startswith("HIGGS") and name != MARK] == []
    assert "check out" not in (host / "path.txt").read_text()


def test_the_host_workflow_keeps_the_console_output_of_snakemake(host: Path) -> None:
    terminal = (host / "terminal.txt").read_text()
    assert "localrule higgs_stage_config:" in terminal
    assert "not present in the Snakefile" not in terminal


def test_a_stage_of_the_module_can_be_a_target(host: Path) -> None:
    run = snakemake(host, "--cores", "2", "higgs_pack", checkout=host)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (host / "results/packed/train.parquet").is_file()
