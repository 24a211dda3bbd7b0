"""The rules of the house that a reader relies on: imports, pins, names, nothing of one machine."""

import ast
import graphlib
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import ROOT
from snakemake.api import SnakemakeApi
from snakemake.rules import Rule
from snakemake.settings.types import ConfigSettings, OutputSettings, ResourceSettings

import higgs_pipe
from higgs_pipe.config.stages import STAGES as STAGE_SETTINGS
from higgs_pipe.data.clips.reasons import Reason
from higgs_pipe.planning.stages import STAGES

PACKAGE = ROOT / "higgs_pipe"
# Imports flow from a higher level to a lower one.
LEVELS = {
    **{"errors": 0, "planning": 1, "cli": 2, "progress": 2, "config": 2},
    **{"data": 3, "higgs": 4, "training": 5, "listening": 5},
    **{"reporting": 6, "publishing": 7},
}
STAGE = 8
RULE_FILES = [ROOT / "Snakefile", *sorted((ROOT / "workflow" / "rules").glob("*.smk"))]


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


def test_there_are_no_circular_imports() -> None:
    graph = {
        module: {str(module_of(name)) for name in imports(path.read_text()) if module_of(name)}
        for module, path in modules()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_an_import_against_the_flow_is_found() -> None:
    assert upward_imports("training.x", "import higgs_pipe.listening.speech_models") != []
    assert upward_imports("data.tables", "from higgs_pipe.higgs import codes") == ["higgs.codes"]
    assert upward_imports("pack", "import higgs_pipe.validate") == ["validate"]
    assert upward_imports("pack", "from higgs_pipe.config import PackStage") == []


# Packages that take seconds or hundreds of megabytes to import, and their parts that do.
HEAVY = (
    "torch",
    "torch._dynamo",
    "torchaudio",
    "transformers",
    "transformers.modeling_utils",
    "peft",
    "accelerate",
    "scipy",
    "matplotlib",
    "onnxruntime",
)
CODEC = {*HEAVY} - {"peft", "matplotlib", "onnxruntime"}
# By stages that start a process per shard, or need no model: what their imports may bring.
MAY_BRING: list[tuple[str, set[str]]] = [
    ("list_rows measure validate check_models pin_model", set()),
    ("accept push", {"scipy"}),
    ("report clips_page", {"scipy", "matplotlib"}),
    ("pack estimate", {"transformers"}),
    ("tokenize_audio", CODEC),
]


@pytest.mark.parametrize(("stages", "allowed"), MAY_BRING)
def test_a_stage_without_a_model_imports_no_heavy_library(stages: str, allowed: set[str]) -> None:
    names = ", ".join(f"higgs_pipe.{stage}" for stage in stages.split())
    program = f"import sys, {names}; print(*({set(HEAVY)} & set(sys.modules)))"
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert set(ended.stdout.split()) <= allowed


def test_the_workflow_needs_only_what_every_snakemake_installation_has() -> None:
    allowed = sys.stdlib_module_names | {"yaml", "jsonschema"}
    paths = [PACKAGE / "errors.py", PACKAGE / "__init__.py", *(PACKAGE / "planning").glob("*.py")]
    for path in paths:
        used = set(imports(path.read_text()))
        foreign = {dotted for dotted in used if dotted.split(".")[0] not in allowed}
        modules = {str(module_of(dotted)) for dotted in foreign}
        assert all(name == "errors" or name.startswith("planning.") for name in modules), foreign


def rules_of(**config: Any) -> dict[str, Rule]:
    """The rules that make files, by name, as Snakemake reads them with some settings."""
    with SnakemakeApi(OutputSettings()) as api:
        workflow = api.workflow(
            resource_settings=ResourceSettings(),
            config_settings=ConfigSettings(config=config),
            snakefile=ROOT / "Snakefile",
        )
        return {rule.name: rule for rule in workflow._workflow.rules if rule.shellcmd}


@pytest.fixture(scope="module")
def rules() -> dict[str, Rule]:
    return rules_of()


def test_the_rules_import_only_the_standard_library_and_planning() -> None:
    for path in RULE_FILES:
        lines = [line.split() for line in path.read_text().splitlines()]
        imported = {line[1] for line in lines if line and line[0] in ("import", "from")}
        ours = {name for name in imported if name.startswith("higgs_pipe.planning.")}
        assert imported - ours <= sys.stdlib_module_names, path.name


def test_every_rule_has_the_module_and_version_of_its_stage(rules: dict[str, Rule]) -> None:
    assert set(rules) == {stage.rule for stage in STAGES.values()} | {
        "stage_config",
        "publish_adapter",
    }
    for stage in STAGES.values():
        rule = rules[stage.rule]
        assert f" -m higgs_pipe.{stage.module} " in rule.shellcmd
        assert dict(rule.params.items())["version"] == stage.version


def test_every_stage_except_the_miniatures_has_a_settings_class() -> None:
    assert set(STAGES) == set(STAGE_SETTINGS) | {"tiny", "tiny_v3"}


def test_contributing_shows_the_names_of_every_stage() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text().splitlines()
    lines = [line.strip("|") for line in page if line.startswith("|")]
    cells = [[cell.strip(" `") for cell in line.split("|")] for line in lines]
    names = [[name, *stage[:3]] for name, stage in STAGES.items()]
    assert [row for row in cells if row[0] in STAGES] == names


def remedies() -> Iterator[str]:
    """Rules that a file is said to be made by, or that an error says to run again."""
    for _, path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                _, *after = node.value.split("--forcerun ")
                yield from (text.split()[0].strip(".,;`") for text in after if text.strip())
            elif (isinstance(node, ast.keyword) and node.arg == "made_by") or (
                isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "made_by"
            ):
                yield ast.literal_eval(node.value)


def test_every_forcerun_remedy_names_an_existing_rule() -> None:
    found = set(remedies()) - {"<rule>"}  # in a docstring
    assert len(found) > 5
    assert found <= {stage.rule for stage in STAGES.values()}


def test_every_rule_passes_the_options_its_module_takes(rules: dict[str, Rule]) -> None:
    for stage in STAGES.values():
        run = importlib.import_module(f"higgs_pipe.{stage.module}").run
        declared = inspect.signature(run).parameters
        required = {name for name, p in declared.items() if p.default is p.empty}
        words = rules[stage.rule].shellcmd.split()
        given = {word[2:].replace("-", "_") for word in words if word.startswith("--")} - {"log"}
        assert required <= given <= set(declared), stage.module


def test_every_stage_rule_has_a_log_and_a_benchmark(rules: dict[str, Rule]) -> None:
    for stage in STAGES.values():
        assert rules[stage.rule].log, stage.rule
        assert rules[stage.rule].benchmark, stage.rule


def test_rules_for_the_other_manifest_match_those_they_inherit_from(
    rules: dict[str, Rule],
) -> None:
    found = rules_of(eval={"other_manifest": "other.jsonl"})
    added = found.keys() - rules.keys()
    assert len(added) == 7
    for name in added:
        stage = found[name.removesuffix("_other")]
        assert stage.input.keys() <= found[name].input.keys(), name
    text = (ROOT / "workflow/rules/other.smk").read_text()
    contract = re.compile(r"\n# reads:  .*?\n# writes: .*?\nuse rule \w+ as (\w+) with:", re.DOTALL)
    assert set(contract.findall(text)) == added


def test_every_rule_has_a_comment_with_what_it_reads_and_writes(rules: dict[str, Rule]) -> None:
    blocks = [block for path in RULE_FILES[1:] for block in path.read_text().split("\n\n\n")]
    for name in rules:
        [block] = [b for b in blocks if f"rule {name}:" in b or f"checkpoint {name}:" in b]
        contract = block.split(f" {name}:")[0]
        assert "\n# reads:  " in contract, name
        assert "\n# writes: " in contract, name


def test_the_readme_has_at_most_150_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_citation_names_the_version_and_the_licence_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == higgs_pipe.__version__
    assert citation["license"] == project["license"]


@pytest.mark.parametrize("name", ["ci", "release"])
def test_ci_and_release_workflows_run_the_same_script(name: str) -> None:
    text = (ROOT / f".github/workflows/{name}.yml").read_text()
    [job] = yaml.safe_load(text)["jobs"].values()
    assert ".ci/run" in [step.get("run") for step in job["steps"]]


@pytest.mark.parametrize(
    ("tag", "returncode"),
    [("v0.1.0", 0), ("0.1.0", 2), ("v99.0.0", 2), ("v0.1", 2)],
)
def test_only_a_tag_that_matches_the_version_is_released(
    tag: str, returncode: int, tmp_path: Path
) -> None:
    for name in ("CITATION.cff", "CHANGELOG.md", ".ci/notes", "higgs_pipe/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        text = (ROOT / name).read_text().replace(higgs_pipe.__version__, "0.1.0")
        (tmp_path / name).write_text(text)
    run = subprocess.run(
        [sys.executable, str(tmp_path / ".ci/notes"), tag],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == returncode
    assert bool(run.stdout.strip()) == (returncode == 0)


def test_the_tree_in_the_readme_shows_every_package() -> None:
    page = (ROOT / "README.md").read_text()
    rooms = {
        path.parent.relative_to(PACKAGE).parts[0] for _, path in modules() if path.parent != PACKAGE
    }
    assert [room for room in sorted(rooms) if f"\n  {room}/ " not in page] == []


def messages() -> str:
    """Every text of the package, with … where a value is formatted into it."""
    texts = []
    for _, path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant):
                texts.append(str(node.value))
    return "\n".join(texts)


def test_the_errors_page_has_every_reason_and_no_stale_message() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    cells = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")]
    named = {phrase for cell in cells for phrase in re.findall("`([^`]+)`", cell)}
    assert {str(reason) for reason in Reason} <= named
    known = messages()
    assert [phrase for phrase in sorted(named) if phrase not in known] == []


# Their length is that of a list of declarations.
LONG_LISTS = {"config.settings", "data.specs"}


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: str(value))
def test_a_module_has_at_most_300_lines(module: str, path: Path) -> None:
    assert module in LONG_LISTS or len(path.read_text().splitlines()) <= 300


def test_no_docstring_begins_with_a_question_word() -> None:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    asking = ("What ", "Which ", "How ", "Whether ", "Where ", "Who ", "Whose ")
    found = [
        f"{module}: {docstring.splitlines()[0]}"
        for module, path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, documented) and (docstring := ast.get_docstring(node))
        if docstring.startswith(asking)
    ]
    assert found == []


def test_the_name_of_a_test_is_shorter_than_75_characters() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        if len(node.name) >= 75
    ]
    assert long == []


def test_the_conda_environment_has_the_locked_versions() -> None:
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


def test_no_file_contains_a_local_path_or_a_package_host() -> None:
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


def test_the_page_about_higgs_names_each_of_its_modules() -> None:
    folder = PACKAGE / "higgs"
    page = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    named = re.findall(r"``(\w+)``", page)
    modules_of_both = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert sorted(named) == sorted({"v2", "v3", *modules_of_both})
