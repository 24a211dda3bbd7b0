"""The configs and commands in the docs: every config is valid and every command can be planned."""

import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import ROOT

from higgs_pipe import speak
from higgs_pipe.config.settings import Config
from higgs_pipe.planning.config_check import merge
from higgs_pipe.planning.stages import STAGES

PAGES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
# What needs a plugin or program that the lock does not have; its own tests run it.
NEEDS_MORE = re.compile("--default-storage-provider|--sdm")
# Runs each line of stdin as a command line of Snakemake, as a dry run, in one process.
PLAN_ALL = """
import shlex, sys
from snakemake.cli import main
for line in sys.stdin:
    try:
        main([*shlex.split(line), "--snakefile", sys.argv[1], "--dry-run", "--quiet", "all"])
    except SystemExit as end:
        if end.code:
            sys.exit(f"{line}ended with {end.code}")
    print("planned", flush=True)
"""


def blocks(language: str) -> list[tuple[Path, str]]:
    """The blocks of a language, with their pages."""
    return [
        (page, text)
        for page in PAGES
        for _, found, text in BLOCK.findall(page.read_text())
        if found == language
    ]


def commands(program: str) -> list[str]:
    """The command lines of a program, without its name, each once."""
    lines = [
        line.strip()
        for _, text in blocks("bash")
        for line in text.replace("\\\n", " ").splitlines()
    ]
    found = (line.split("  #")[0] for line in lines if line.startswith(f"{program} "))
    return sorted({line.removeprefix(f"{program} ") for line in found})


def named_configs() -> dict[str, str]:
    """The configs that begin with their name, such as ``# my-voice.yaml``."""
    named = {}
    for _, text in blocks("yaml"):
        if name := re.match(r"# (\S+\.yaml)\n", text):
            named[name[1]] = text
    return named


@pytest.mark.parametrize(
    ("page", "text"), blocks("yaml"), ids=lambda value: getattr(value, "stem", "")
)
def test_every_config_in_the_tutorials_is_valid(page: Path, text: str) -> None:
    shipped = yaml.safe_load((ROOT / "config.yaml").read_text())
    settings = yaml.safe_load(text)
    Config.model_validate(merge(shipped, settings))


@pytest.mark.slow
def test_every_snakemake_command_in_the_tutorials_can_be_planned(tmp_path: Path) -> None:
    for name in ("examples", "profiles"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name, text in named_configs().items():
        (tmp_path / name).write_text(text)
    lines = [line for line in commands("snakemake") if not NEEDS_MORE.search(line)]
    run = subprocess.run(
        [sys.executable, "-c", PLAN_ALL, str(ROOT / "Snakefile")],
        input="\n".join(lines),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("planned") == len(lines) >= 12


def test_every_documented_speak_command_uses_existing_options() -> None:
    known = set(inspect.signature(speak.run).parameters)
    lines = commands("python -m higgs_pipe.speak")
    assert len(lines) >= 3
    for line in lines:
        options = {word for word in shlex.split(line) if word.startswith("--")}
        assert {option[2:].replace("-", "_") for option in options} <= known


def test_every_target_and_rule_named_in_the_docs_exists() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    rules = {stage.rule for stage in STAGES.values()}
    forced = {name.removesuffix("_other") for name in re.findall(r"--forcerun (\w+)", text)}
    assert "eval_adapter" in forced <= rules
    targets = set(re.findall(r"`snakemake ([a-z]\w*)", text)) - {"higgs_pack"}  # of a module
    assert "validate" in targets <= {stage.target for stage in STAGES.values()}


def test_the_troubleshooting_page_names_existing_keys() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text()
    words = {
        word for code in re.findall("`([^`]+)`", page) for word in re.findall(r"\w+_\w+", code)
    }
    sources = [*(ROOT / "higgs_pipe").rglob("*.py"), ROOT / "config.yaml"]
    known = "\n".join(path.read_text() for path in sources)
    families = re.compile("eval_audio_loss_codebook_|adapter_stop_|data_seconds")
    assert [word for word in sorted(words) if word not in known and not families.match(word)] == []


def test_the_troubleshooting_page_quotes_existing_headings() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text()
    quoted = set(re.findall(r'"([A-Z][^"]+)"', page))
    templates = [*(ROOT / "higgs_pipe/templates/report").glob("*.j2")]
    shown = "".join(path.read_text() for path in templates).replace("\u2019", "'")
    assert len(quoted) >= 4
    assert [heading for heading in sorted(quoted) if heading not in shown] == []
