"""The rules of the house that a reader relies on: imports, pins, names, nothing of one machine."""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from helpers import ROOT

from higgs_pipe.config.stages import STAGES
from higgs_pipe.planning.targets import STAGE_VERSIONS

PACKAGE = ROOT / "higgs_pipe"
# Imports flow from a higher level to a lower one.
LEVELS = {
    **{"errors": 0, "cli": 1, "config": 1, "planning": 1},
    **{"data": 2, "higgs": 3, "training": 4, "listening": 4},
    "reporting": 5,
}
STAGE = 6
RULES = [ROOT / "Snakefile", *sorted((ROOT / "workflow" / "rules").glob("*.smk"))]


def imports(source: str) -> Iterator[str]:
    """Dotted names of what is imported, wherever in the file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(dotted: str) -> str | None:
    """The module of ours that an imported name belongs to, as ``data.tables`` or ``config``."""
    parts = dotted.split(".")
    if parts[0] != "higgs_pipe":
        return None
    for length in range(len(parts), 1, -1):
        path = PACKAGE.joinpath(*parts[1:length])
        if path.with_suffix(".py").exists() or path.is_dir():
            return ".".join(parts[1:length])
    return None


def level(module: str) -> int:
    return LEVELS.get(module.split(".")[0], STAGE)


def modules() -> list[tuple[str, Path]]:
    paths = sorted(PACKAGE.rglob("*.py"))
    return [
        (".".join(path.relative_to(PACKAGE).with_suffix("").parts), path)
        for path in paths
        if path.name != "__init__.py"
    ]


def upward_imports(module: str, source: str) -> list[str]:
    used = {name for dotted in imports(source) if (name := module_of(dotted))} - {module}
    room = module.split(".")[0]
    return sorted(
        name
        for name in used
        if level(name) > level(module)
        or (level(name) == level(module) and name.split(".")[0] != room)
    )


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: str(value))
def test_imports_flow_one_way_and_stages_never_import_each_other(module: str, path: Path) -> None:
    assert upward_imports(module, path.read_text()) == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {
        module: {str(module_of(name)) for name in imports(path.read_text()) if module_of(name)}
        for module, path in modules()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_an_import_against_the_flow_is_noticed() -> None:
    assert upward_imports("training.x", "import higgs_pipe.listening.speech_models") != []
    assert upward_imports("data.tables", "from higgs_pipe.higgs import codes") == ["higgs.codes"]
    assert upward_imports("pack", "import higgs_pipe.validate") == ["validate"]
    assert upward_imports("pack", "from higgs_pipe.config import PackStage") == []


def test_the_workflow_needs_only_what_every_snakemake_installation_has() -> None:
    allowed = sys.stdlib_module_names | {"yaml", "jsonschema"}
    paths = [PACKAGE / "errors.py", PACKAGE / "__init__.py", *(PACKAGE / "planning").glob("*.py")]
    for path in paths:
        used = set(imports(path.read_text()))
        foreign = {dotted for dotted in used if dotted.split(".")[0] not in allowed}
        modules = {str(module_of(dotted)) for dotted in foreign}
        assert all(name == "errors" or name.startswith("planning.") for name in modules), foreign


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_rules_import_modules_of_the_standard_library_and_ours_alone(path: Path) -> None:
    lines = re.findall(r"^ *(?:import|from) .*$", path.read_text(), re.MULTILINE)
    others = [line.split()[1] for line in lines if "import higgs_pipe.planning." not in line]
    assert set(others) <= sys.stdlib_module_names


def test_every_stage_has_a_version_that_its_rule_names() -> None:
    assert set(STAGES) <= set(STAGE_VERSIONS)
    text = "\n".join(path.read_text() for path in RULES)
    assert set(re.findall(r'STAGE_VERSIONS\["(\w+)"\]', text)) == set(STAGE_VERSIONS)


def test_every_remedy_names_a_rule_that_there_is() -> None:
    source = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    named = set(re.findall(r'--forcerun (\w+)|made_by="(\w+)"', source))
    text = "\n".join(path.read_text() for path in RULES[1:])
    rules = set(re.findall(r"^(?:rule|checkpoint) (\w+):", text, re.MULTILINE))
    assert {forced or made_by for forced, made_by in named} <= rules


def test_every_rule_calls_its_module_with_the_options_that_it_has() -> None:
    text = "\n".join(path.read_text() for path in RULES)
    calls = re.findall(r"-m (higgs_pipe\.[\w.]+)(.*?)(?:\n\n|\Z)", text, re.DOTALL)
    assert len(calls) == len(STAGE_VERSIONS)
    for module, words in calls:
        path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
        functions = ast.parse(path.read_text()).body
        [run] = [f for f in functions if isinstance(f, ast.FunctionDef) and f.name == "run"]
        declared = [argument.arg.replace("_", "-") for argument in run.args.args]
        required = set(declared[: len(declared) - len(run.args.defaults)])
        given = set(re.findall(r"--([a-z-]+)", words)) - {"log"}
        assert required <= given <= set(declared), module


def test_each_rule_file_opens_with_what_goes_in_and_what_comes_out() -> None:
    for path in RULES[1:]:
        heading = path.read_text().split("\n\n")[0]
        contract = "# in:" in heading and "# out:" in heading
        assert contract or path.name == "common.smk", path.name


def test_the_conda_environment_has_the_versions_of_the_lock() -> None:
    environment = yaml.safe_load((ROOT / "envs" / "higgs-pipe.yaml").read_text())
    [pins] = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    locked = (ROOT / "requirements.txt").read_text()
    runtime, _ = (ROOT / "requirements.in").read_text().split("# Tests and checks.")
    wanted = set(re.findall(r"^([a-z][\w-]*)", runtime, re.MULTILINE))
    assert {pin.split("==")[0] for pin in pins} == {
        name for name in wanted if not name.startswith("snakemake")
    }
    for pin in pins:
        assert re.search(rf"^{re.escape(pin)}\b", locked, re.MULTILINE), pin


def tracked_files() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout, so there are no tracked files to look at")
    return [ROOT / name for name in listing.stdout.split("\0") if name]


def test_no_file_names_a_path_of_one_machine_or_a_package_host() -> None:
    machine = re.compile(
        r"(?<!emit-)index-url|file:/{2}|(?<![\w.*])/(?:root|work)/|/opt/(?:wheels|pypi)"
    )
    offenders = []
    for path in tracked_files():
        if path == Path(__file__) or not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # audio
        offenders += [f"{path.relative_to(ROOT)}: {hit}" for hit in machine.findall(text)]
    assert offenders == []
