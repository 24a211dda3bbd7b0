"""The workflow itself: plans, reruns and their reasons, and what is refused before any job.

The stages are stood in for by a stub, so that these tests are about the rules alone; whole runs
of the real stages are in test_pipeline.py.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import ROOT, config_of_base, has_line_with, jobs_run, python_path
from workflow.stub_checkout import make_stub_checkout, snakemake, write_config

from higgs_pipe.errors import UserError
from higgs_pipe.planning.launching import environment, launch_command, launch_settings
from higgs_pipe.planning.manifests import inputs
from higgs_pipe.planning.models import is_within
from higgs_pipe.planning.products import closing_lines, products, versions
from higgs_pipe.planning.stages import STAGES
from higgs_pipe.publishing.sealing import seal

BIN = Path(sys.executable).parent
EVERYTHING = {
    "stage_config": 14,
    "tiny_base": 1,
    "pin_model": 2,
    "list_rows": 1,
    "measure_shard": 2,
    "judge_clips": 1,
    "estimate": 1,
    "clips_page": 1,
    "tokenize_shard": 2,
    "pack_rows": 1,
    "train_adapter": 1,
    "publish_adapter": 1,
    "eval_adapter": 1,
    "accept_adapter": 1,
    "package_adapter": 1,
    "report": 1,
    "all": 1,
}
PAGES_OF_DATA = ["estimate", "clips_page"]
TRAINING_ON = [
    "train_adapter",
    "publish_adapter",
    "eval_adapter",
    "accept_adapter",
    "package_adapter",
    "report",
    "all",
]

# The folders that the workflow writes to.
WRITTEN = ("results", "resources", "logs", "benchmarks")
# What eval.other_manifest adds.
OTHER = {
    "stage_config_other": 2,
    **dict.fromkeys(("list_rows_other", "measure_shard_other", "judge_clips_other"), 1),
    **dict.fromkeys(("tokenize_shard_other", "pack_rows_other", "eval_adapter_other"), 1),
}


def jobs(cwd: Path, *words: str, checkout: Path = ROOT) -> Counter[str]:
    """How many jobs of each rule a dry run plans."""
    run = snakemake(cwd, "--dry-run", *words, checkout=checkout)
    assert run.returncode == 0, run.stdout + run.stderr
    table = re.search(r"^-+ +-+$(.*?)^total", run.stdout + run.stderr, re.MULTILINE | re.DOTALL)
    if table is None:
        assert "Nothing to be done" in run.stdout + run.stderr
        return Counter()
    return Counter({name: int(count) for name, count in re.findall(r"(\w+) +(\d+)", table[1])})


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A user folder with the shipped config and an empty manifest."""
    (tmp_path / "m.jsonl").write_text("")
    write_config(tmp_path, manifest="m.jsonl")
    return tmp_path


@pytest.mark.parametrize(
    ("target", "missing"),
    [
        ("all", set()),
        ("package", {*PAGES_OF_DATA, "report"}),
        ("report", {*PAGES_OF_DATA, "accept_adapter", "package_adapter"}),
        ("eval", {*PAGES_OF_DATA, "package_adapter", "report"}),
        ("train", {*PAGES_OF_DATA, *TRAINING_ON[2:-1]}),
        ("pack", {*PAGES_OF_DATA, *TRAINING_ON}),
        ("tokenize", {*PAGES_OF_DATA, "pack_rows", *TRAINING_ON}),
        ("validate", {"pin_model", "tokenize_shard", "pack_rows", *TRAINING_ON}),
    ],
)
def test_a_target_plans_what_it_needs_and_no_more(
    workdir: Path, target: str, missing: set[str]
) -> None:
    planned = set(jobs(workdir, target))
    assert planned - {target} == set(EVERYTHING) - missing - {target, "all"}


def test_a_dry_run_shows_jobs_and_reasons_in_under_50_lines(workdir: Path) -> None:
    run = snakemake(workdir, "--dry-run")
    lines = (run.stdout + run.stderr).splitlines()
    assert len(lines) < 50
    told = "\n".join(lines)
    assert told.count("Job stats:") == 1
    assert "output files have to be generated:" in told
    assert "snakemake -np shows each job" in told


def test_everything_is_planned_by_default(workdir: Path) -> None:
    assert jobs(workdir) == EVERYTHING


def test_push_plans_acceptance_package_and_push_only(workdir: Path) -> None:
    refused = snakemake(workdir, "--dry-run", "push")
    assert refused.returncode == 2
    assert has_line_with(refused.stderr, "push.repo is null")
    write_config(workdir, push={"repo": "ada/voice"})
    planned = set(jobs(workdir, "push"))
    assert {"accept_adapter", "package_adapter", "push_adapter"} <= planned
    assert not {"report", "merge_adapter"} & planned


def test_full_checkpoints_are_built_before_they_are_pushed(workdir: Path) -> None:
    write_config(
        workdir,
        package={"forms": ["peft", "merged", "original"]},
        push={"forms": ["merged", "original"], "repo": "ada/voice"},
    )
    planned = jobs(workdir, "push")
    assert (planned["merge_adapter"], planned["push_adapter"]) == (2, 2)
    assert "package_adapter" not in planned


def test_an_earlier_adapter_is_trained_first_or_reported_missing(workdir: Path) -> None:
    chained = {"init_adapter": "results/experiments/first/train/adapter"}
    write_config(workdir, experiments={"first": {}, "second": chained})
    assert jobs(workdir, "results/experiments/second/train/run.json")["train_adapter"] == 2
    write_config(workdir, experiments={"second": chained})
    run = snakemake(workdir, "--dry-run")
    assert run.returncode == 2
    assert has_line_with(run.stderr, "second:", "results/experiments/first", "has no")


def test_each_experiment_is_trained_evaluated_and_packaged(workdir: Path) -> None:
    write_config(workdir, experiments={"small": {"lora": {"r": 4}}, "big": {"lora": {"r": 64}}})
    planned = jobs(workdir)
    assert [planned[name] for name in TRAINING_ON] == [2, 2, 2, 2, 2, 1, 1]
    assert planned["pack_rows"] == 1


def test_a_base_from_the_hub_needs_no_demo_base(workdir: Path) -> None:
    write_config(workdir, base_model="org/model", codec="org/codec")
    assert "tiny_base" not in jobs(workdir)


@pytest.mark.parametrize("setting", ["base_model", "codec"])
def test_one_model_from_the_hub_is_checked_first(workdir: Path, setting: str) -> None:
    """Even before rows are listed."""
    target, model = "results/data/rows.parquet", f"{setting}=org/model"
    assert jobs(workdir, target, "--config", model)["check_models"] == 1


def test_the_higgs_tts_3_demo_plans_the_demo_on_its_own_miniature(tmp_path: Path) -> None:
    settings = str(ROOT / "examples/demo/v3.yaml")
    planned = jobs(tmp_path, "--configfile", settings)
    # The codec is that of the first miniature; 2 more settings of rows are those of the package.
    assert planned == {**EVERYTHING, "tiny_base_v3": 1, "stage_config": 16}


def settings_of_train(folder: Path, *words: str) -> dict[str, Any]:
    """The settings that training would be given."""
    run = snakemake(folder, "results/config/train.json", *words)
    assert run.returncode == 0, run.stdout + run.stderr
    settings: dict[str, Any] = json.loads((folder / "results/config/train.json").read_text())
    return settings["train"] | {"stderr": run.stderr}


def test_demo_settings_apply_only_while_the_base_is_the_miniature(tmp_path: Path) -> None:
    demo = settings_of_train(tmp_path)
    assert (demo["learning_rate"], demo["num_epochs"]) == (2e-3, 16)
    assert "examples/demo/settings.yaml sets data.num_shards: 2" in demo["stderr"]
    given = settings_of_train(tmp_path, "--config", "train={learning_rate: 2e-4}")
    assert (given["learning_rate"], given["num_epochs"]) == (2e-4, 16)
    other = settings_of_train(tmp_path, "--config", "base_model=some/model", "codec=some/codec")
    assert (other["learning_rate"], other["num_epochs"]) == (2e-4, 2)
    assert "settings.yaml" not in other["stderr"]


def test_one_experiment_on_a_miniature_brings_the_demo_settings_and_notes(tmp_path: Path) -> None:
    """The form that its family does not have is named too."""
    on_v3 = {"base_model": "resources/tiny-higgs-v3"}
    write_config(
        tmp_path,
        **{"base_model": "some/model", "codec": "some/codec"},
        package={"forms": ["peft", "original"]},
        experiments={"large": {}, "small": on_v3},
    )
    demo = settings_of_train(tmp_path)
    assert (demo["learning_rate"], demo["num_epochs"]) == (2e-3, 16)
    assert "examples/demo/settings.yaml sets data.num_shards: 2" in demo["stderr"]
    assert has_line_with(demo["stderr"], "package.forms: original", "not made for small")


def test_a_config_file_means_the_same_in_another_folder(tmp_path: Path) -> None:
    """Without a config.yaml there, that of the checkout is below it."""
    (tmp_path / "mine.yaml").write_text("train: {weight_decay: 0.5}\nexperiments: {small: {}}\n")
    away = settings_of_train(tmp_path, "--configfile", "mine.yaml")
    assert (away["weight_decay"], away["num_epochs"]) == (0.5, 16)
    planned = snakemake(tmp_path, "-np", "train", "--configfile", "mine.yaml").stdout
    assert "experiments/small/train" in planned
    assert "experiments/default/train" not in planned


def test_a_faulty_config_stops_snakemake_with_every_fault_by_name(workdir: Path) -> None:
    run = snakemake(workdir, "-n", "--config", "train={learning_rte: 1, num_epochs: none}", "foo=1")
    assert run.returncode == 2
    assert "Traceback" not in run.stdout + run.stderr
    for name in ("train.learning_rte", "train.num_epochs", "  foo: unknown key"):
        assert name in run.stderr
    assert not (workdir / "results").exists()


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            {"pathvars": {name: f"-{name}" for name in WRITTEN}},
            [f"-{name} begins with a dash" for name in WRITTEN],
        ),
        ({"manifest": "ftp://x/m.jsonl"}, ["manifest: ftp://x/m.jsonl is not on S3"]),
        ({"codec": "./absent"}, ["codec './absent' does not exist"]),
        ({"push": {"forms": ["merged"]}}, ["push.forms: merged cannot be published"]),
        ({"train": {"num_processes": 3, "num_machines": 2}}, ["num_processes is 3"]),
    ],
    ids=["folders", "storage", "checkpoints", "forms", "launches"],
)
def test_what_cannot_work_is_refused_before_any_job(
    workdir: Path, config: dict[str, Any], told: list[str]
) -> None:
    write_config(workdir, **config)
    run = snakemake(workdir, "--dry-run")
    assert run.returncode == 2
    assert [fact for fact in told if fact not in run.stderr] == []


def test_a_checkout_below_a_folder_with_braces_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a {b}").mkdir()
    checkout = make_stub_checkout(tmp_path / "a {b}" / "checkout")
    run = snakemake(tmp_path, "--dry-run", checkout=checkout)
    assert run.returncode == 2
    assert "a {b}" in run.stderr


def test_an_older_snakemake_is_refused(tmp_path: Path) -> None:
    checkout = make_stub_checkout(tmp_path / "checkout")
    prerequisites = checkout / "higgs_pipe/planning/prerequisites.py"
    prerequisites.write_text(prerequisites.read_text().replace("(9, 27)", "(99, 27)"))
    run = snakemake(tmp_path, "--dry-run", checkout=checkout)
    assert run.returncode == 2
    assert "needs 99.27" in run.stderr


def test_a_number_on_the_command_line_is_parsed_as_a_number(workdir: Path) -> None:
    run = snakemake(workdir, "-np", "train", "--config", "train={learning_rate: 1e-4}")
    assert '"learning_rate": 0.0001' in run.stdout + run.stderr


def test_a_missing_manifest_is_reported_by_its_stage_and_not_by_the_plan(workdir: Path) -> None:
    assert jobs(workdir, "validate", "--config", "manifest=absent.jsonl")["validate"] == 1


def test_a_folder_without_a_config_uses_the_given_one_or_the_checkouts(tmp_path: Path) -> None:
    assert jobs(tmp_path, "--configfile", str(ROOT / "config.yaml")) == EVERYTHING
    assert jobs(tmp_path) == EVERYTHING


def test_results_can_be_moved(workdir: Path) -> None:
    run = snakemake(workdir, "-np", "--config", "pathvars={results: elsewhere}")
    planned = run.stdout + run.stderr
    assert "elsewhere/adapters/default.zip" in planned
    assert " results/" not in planned


def test_cpu_jobs_request_no_gpu_and_gpu_jobs_one_per_process(workdir: Path) -> None:
    write_config(workdir, train={"num_processes": 3}, eval={"device": "cpu"})
    run = snakemake(workdir, "-np", "eval")
    blocks = (run.stdout + run.stderr).split("\nrule ")
    [training] = [block for block in blocks if block.startswith("train_adapter")]
    [evaluation] = [block for block in blocks if block.startswith("eval_adapter")]
    assert "gpu=3" in training
    assert "gpu=" not in evaluation


def test_jobs_share_the_gpus_of_this_machine_or_the_given_number(tmp_path: Path) -> None:
    checkout = make_stub_checkout(tmp_path / "checkout")
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1"):
        (tmp_path / "dev" / name).touch()
    launching = checkout / "higgs_pipe/planning/launching.py"
    launching.write_text(launching.read_text().replace('"/dev"', repr(str(tmp_path / "dev"))))
    planned = snakemake(checkout, "-p", "validate", checkout=checkout)
    assert re.search(r"Provided resources: gpu=\D*2\b", planned.stderr)
    planned = snakemake(checkout, "-p", "--resources", "gpu=1", "--", "pack", checkout=checkout)
    assert re.search(r"Provided resources: gpu=\D*1\b", planned.stderr)


def test_the_snakefile_of_the_catalog_is_the_same_workflow(workdir: Path) -> None:
    planned = jobs(workdir, "--snakefile", str(ROOT / "workflow/Snakefile"))
    assert planned.pop("everything") == 1
    assert {**planned, "all": 1} == EVERYTHING


# What `snakedeploy deploy-workflow` writes for a workflow of the catalog, beside a copy of config/.
DEPLOYED = """
configfile: "config/config.yaml"


module higgs_pipe:
    snakefile:
        "{snakefile}"
    config:
        config


use rule * from higgs_pipe
"""


def test_a_workflow_deployed_from_the_catalog_plans_everything(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "config", tmp_path / "config")
    assert (tmp_path / "config/config.yaml").read_text() == (ROOT / "config.yaml").read_text()
    (tmp_path / "workflow").mkdir()
    text = DEPLOYED.format(snakefile=ROOT / "workflow/Snakefile")
    (tmp_path / "workflow/Snakefile").write_text(text)
    planned = jobs(tmp_path, "--snakefile", "workflow/Snakefile", "--cores", "1")
    assert planned.pop("everything") == 1
    assert {**planned, "all": 1} == EVERYTHING


def test_the_quick_run_of_the_catalog_is_the_demo_with_fewer_epochs(tmp_path: Path) -> None:
    settings = yaml.safe_load((ROOT / ".test/config.yaml").read_text())
    settings["manifest"] = str(ROOT / ".test" / settings["manifest"])
    write_config(tmp_path, **settings)
    assert jobs(tmp_path) == EVERYTHING
    assert settings_of_train(tmp_path)["num_epochs"] == 3


def test_lint_finds_nothing() -> None:
    run = snakemake(ROOT, "--lint")
    assert run.returncode == 0, run.stdout + run.stderr


def test_braces_in_a_manifest_path_are_not_wildcards(workdir: Path) -> None:
    (workdir / "my {voice}").mkdir()
    (workdir / "my {voice}/m.jsonl").write_text("")
    assert jobs(workdir, "--config", "manifest=my {voice}/m.jsonl") == EVERYTHING


def test_a_manifest_with_braces_in_its_path_is_not_a_rule_input(tmp_path: Path) -> None:
    plain, braced = tmp_path / "m.jsonl", tmp_path / "{m}.jsonl"
    for path in (plain, braced):
        path.write_text("one")
    assert inputs([str(plain), str(braced), str(tmp_path / "missing.jsonl")]) == [str(plain)]


def test_the_rules_are_formatted() -> None:
    subprocess.run([BIN / "snakefmt", "--check", "Snakefile", "workflow"], cwd=ROOT, check=True)


@pytest.mark.slow
def test_an_environment_with_only_snakemake_can_plan_the_workflow(workdir: Path) -> None:
    uv = shutil.which("uv", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        pytest.skip("uv is neither beside this Python nor on the PATH; `make test` brings it")
    bare = workdir / "bare"
    pin = re.search(r"^snakemake==\S+", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert pin is not None
    python = bare / "bin" / "python"
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, bare], check=True)
    subprocess.run([uv, "pip", "install", "-q", "--python", python, pin[0]], check=True)
    command = [f"{bare}/bin/snakemake", "--snakefile", f"{ROOT}/Snakefile", "--dry-run"]
    run = subprocess.run(command, cwd=workdir, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(rf"total +{sum(EVERYTHING.values())}", run.stdout + run.stderr)
    lacks = subprocess.run([python, "-c", "import torch, pydantic"], capture_output=True)
    assert lacks.returncode != 0


# ---------------------------------------------------------------- runs, with a stub for each stage


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose stages are stubs, in a path with a space, and a finished run inside it."""
    checkout = make_stub_checkout(tmp_path_factory.mktemp("run") / "check out")
    run = snakemake(checkout, checkout=checkout)
    assert run.returncode == 0, run.stdout + run.stderr
    (checkout / "closing.txt").write_text(run.stderr)
    return checkout


@pytest.fixture
def checkout(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to change something in."""
    copy = tmp_path / "check out"
    shutil.copytree(finished, copy, symlinks=True)
    return copy


def mtimes(folder: Path) -> dict[Path, int]:
    """When each file of a folder was last written, but for Snakemake's own."""
    files = [path for path in folder.rglob("[!.]*") if path.is_file()]
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in files}


def reruns(checkout: Path, *words: str) -> Counter[str]:
    return jobs(checkout, *words, checkout=checkout)


def test_a_run_ends_with_the_paths_of_its_results(finished: Path) -> None:
    closing = (finished / "closing.txt").read_text()
    for path in ("adapters/default", "experiments/default/eval/metrics.json", "report/index.html"):
        assert f"results/{path}\n" in closing


@pytest.mark.slow
def test_a_project_may_have_any_valid_folder_name(tmp_path: Path) -> None:
    checkout = make_stub_checkout(tmp_path / "Stimme für 'mich'")
    project = tmp_path / '声 {mine} $HOME; "x" & é'
    project.mkdir()
    (project / "список.jsonl").write_text("0 a\n1 a\n")
    write_config(project, manifest="список.jsonl")
    run = snakemake(project, "--cores", "2", checkout=checkout)
    assert run.returncode == 0, run.stderr
    assert (project / "results/adapters/default/README.md").read_text() == "default"


def test_a_second_run_does_nothing(finished: Path) -> None:
    assert reruns(finished) == {}
    assert reruns(finished, "--cores", "1") == {}


@pytest.mark.parametrize("order", [1, -1])
def test_a_copied_project_reruns_nothing_whatever_its_file_times(
    finished: Path, tmp_path: Path, order: int
) -> None:
    copy = tmp_path / "elsewhere" / "my copy"
    shutil.copytree(finished, copy)
    for age, path in enumerate(sorted(copy.rglob("*"))[::order]):
        os.utime(path, (2e9 + age, 2e9 + age))
    assert reruns(copy) == {}


@pytest.mark.parametrize("is_by_experiment", [True, False])
def test_a_finished_adapter_is_kept_until_its_successor_is_complete(
    checkout: Path, is_by_experiment: bool
) -> None:
    """Nothing from the failed training counts as up to date."""
    adapter = checkout / "results/experiments/default/train/adapter/adapter_model.safetensors"
    before = adapter.read_text()
    seed = {"seed": 1}
    settings = {"experiments": {"default": seed}} if is_by_experiment else {"train": seed}
    write_config(checkout, manifest="m.jsonl", **settings)
    stage = checkout / "higgs_pipe/train.py"
    stub = stage.read_text()
    stage.write_text("raise SystemExit(2)")
    assert snakemake(checkout, "train", checkout=checkout).returncode == 1
    assert adapter.read_text() == before
    assert {"train_adapter", "publish_adapter"} <= set(reruns(checkout, "train"))
    stage.write_text(stub)
    assert snakemake(checkout, "train", checkout=checkout).returncode == 0
    assert adapter.read_text() != before


def lines_of_the_page() -> list[Any]:
    """The lines of docs/reruns.md on settings: the change as YAML, and the rules."""
    page = (ROOT / "docs/reruns.md").read_text()
    lines = re.findall(r"^\| `(\w+: \{.*)` \| (`\w+`(?: `\w+`)*) \|$", page, re.MULTILINE)
    return [pytest.param(change, re.findall(r"\w+", rules), id=change) for change, rules in lines]


@pytest.mark.parametrize(("change", "expected"), lines_of_the_page())
def test_a_changed_setting_reruns_the_documented_stages(
    checkout: Path, change: str, expected: list[str]
) -> None:
    settings = yaml.safe_load(change)
    shipped = yaml.safe_load((checkout / "config.yaml").read_text())
    for section, values in settings.items():
        shipped[section].update(values)
    (checkout / "config.yaml").write_text(yaml.safe_dump(shipped))
    assert set(reruns(checkout)) - {"stage_config", "all"} == set(expected)


def test_the_page_on_reruns_covers_every_section() -> None:
    changed = {next(iter(yaml.safe_load(line.values[0]))) for line in lines_of_the_page()}
    sections = {"data", "validate", "tokenize", "pack", "train", "experiments", "eval", "report"}
    assert changed == sections


def test_adding_an_experiment_does_not_rerun_the_first(checkout: Path) -> None:
    planned = reruns(checkout, "--config", "experiments={default: {}, small: {lora: {r: 4}}}")
    assert planned == dict.fromkeys(["stage_config", "estimate", *TRAINING_ON], 1)


@pytest.mark.slow
def test_an_experiment_on_another_base_packs_its_own_rows_and_shares_the_rest(
    checkout: Path,
) -> None:
    base = checkout / "other base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(config_of_base()))
    (base / "pytorch_model.bin").write_text("weights")
    given = ("--config", "experiments={default: {}, x: {base_model: other base, seed: 1}}")
    own = dict.fromkeys(["estimate", "pin_model", "pack_rows", *TRAINING_ON], 1)
    assert reruns(checkout, *given) == {**own, "stage_config": 8}  # 7 of x; that of estimate
    before = mtimes(checkout / "results")
    run = snakemake(checkout, "--cores", "2", *given, checkout=checkout)
    assert run.returncode == 0, run.stdout + run.stderr
    after = mtimes(checkout / "results")
    changed = {str(path) for path in before if after[path] != before[path]}
    report = {"report/index.html", "report/figures/total-loss.svg"}
    assert changed == {"config/estimate.json", "data/estimate.json", *report}
    trained = (checkout / "results/experiments/x/train/config.json").read_text()
    assert trained.startswith('{"seed": 1}{')
    assert '"base_model": "other base"' in trained
    assert (checkout / "results/bases/other_base/packed/eval.parquet").is_file()
    assert reruns(checkout, *given) == {}
    assert reruns(checkout) == {"stage_config": 1, "estimate": 1, "report": 1, "all": 1}


@pytest.mark.slow
def test_the_other_manifest_runs_its_own_rules_and_reruns_no_other(checkout: Path) -> None:
    shown = {"package_adapter": 1, "report": 1, "all": 1}
    (checkout / "other.jsonl").write_text("0 x\n")
    given = ("--config", "eval={other_manifest: other.jsonl}")
    assert reruns(checkout, *given) == {**OTHER, **shown, "stage_config": 2}
    run = snakemake(checkout, "--cores", "2", *given, checkout=checkout)
    assert run.returncode == 0, run.stdout + run.stderr
    assert reruns(checkout, *given) == {}
    assert reruns(checkout) == {**shown, "stage_config": 2}
    (checkout / "other.jsonl").write_text("0 y\n")
    changed = {name: count for name, count in OTHER.items() if name != "stage_config_other"}
    assert reruns(checkout, *given) == {**changed, **shown}


@pytest.mark.slow
def test_a_manifest_edit_that_changes_no_row_does_not_rerun_the_other_rules(
    checkout: Path,
) -> None:
    """Which of its rows are accepted depends on the training clips, so only a run can tell."""
    (checkout / "other.jsonl").write_text("0 x\n")
    given = ("--cores", "2", "--config", "eval={other_manifest: other.jsonl}")
    run = snakemake(checkout, *given, checkout=checkout)
    assert run.returncode == 0, run.stdout + run.stderr
    (checkout / "m.jsonl").write_text("0 a\n1 a")  # without the last line break
    run = snakemake(checkout, *given, checkout=checkout)
    assert run.returncode == 0, run.stdout + run.stderr
    assert jobs_run(run.stderr) == ["list_rows"]


def test_a_new_version_of_a_stage_reruns_it(checkout: Path) -> None:
    source = checkout / "higgs_pipe" / "planning" / "stages.py"
    text = source.read_text()
    line = f'"evaluate", {STAGES["eval"].version})'
    assert line in text
    source.write_text(text.replace(line, '"evaluate", 1000)'))
    assert reruns(checkout) == dict.fromkeys(TRAINING_ON[2:], 1)


@pytest.mark.parametrize(
    ("manifest", "shards"),
    [
        ("0 a\n1 a\n1 b\n", ["shard-00001"]),  # a new row
        ("0 b\n0 a\n1 a\n", ["shard-00000"]),  # before all others
        ("0 c\n1 a\n", ["shard-00000"]),  # another recording
        ("0 a\n", ["shard-00001"]),  # a row less
        ("0 a other text\n1 a\n", []),  # nothing to decode
    ],
)
def test_a_changed_row_reruns_only_its_own_shard(
    checkout: Path, manifest: str, shards: list[str]
) -> None:
    (checkout / "m.jsonl").write_text(manifest)
    run = snakemake(checkout, "pack", checkout=checkout)
    assert run.returncode == 0, run.stdout + run.stderr
    of_shards = [
        f"{rule} {name}" for rule in ("measure_shard", "tokenize_shard") for name in shards
    ]
    assert sorted(jobs_run(run.stderr)) == sorted(
        ["list_rows", "judge_clips", "pack_rows", *of_shards]
    )
    assert reruns(checkout, "pack") == {}


def test_a_manifest_edit_that_changes_no_row_reruns_nothing(checkout: Path) -> None:
    (checkout / "m.jsonl").write_text("0 a\n1 a")  # without the last line break
    run = snakemake(checkout, checkout=checkout)
    assert run.returncode == 0, run.stdout + run.stderr
    assert jobs_run(run.stderr) == ["list_rows"]
    assert reruns(checkout) == {}


@pytest.mark.slow
def test_changed_weights_rerun_what_used_them_and_touched_ones_nothing(
    checkout: Path,
) -> None:
    weights = checkout / "base" / "pytorch_model.bin"
    weights.parent.mkdir()
    (weights.parent / "config.json").write_text(json.dumps(config_of_base()))

    def rules_run_after(text: str) -> list[str]:
        weights.write_text(text)
        run = snakemake(checkout, "train", checkout=checkout)
        assert run.returncode == 0, run.stdout + run.stderr
        assert reruns(checkout, "train") == {}
        return [job.split()[0] for job in jobs_run(run.stderr)]

    write_config(checkout, manifest="m.jsonl", base_model="base", data={"num_shards": 2})
    rules_run_after("first")
    assert rules_run_after("first") == []
    assert rules_run_after("other") == [
        "pin_model",
        "pack_rows",
        "train_adapter",
        "publish_adapter",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule",
    ["list_rows", "measure_shard", "judge_clips", "tokenize_shard", "pack_rows", "eval_adapter"],
)
def test_the_forcerun_command_of_a_message_reruns_its_rule(checkout: Path, rule: str) -> None:
    assert rule in reruns(checkout, "--forcerun", rule)


def test_a_stage_config_preserves_special_characters(checkout: Path) -> None:
    prompt = 'It\'s {wildcards} "quoted" $HOME `x` é\n'
    write_config(checkout, manifest="m.jsonl", pack={"system_prompt": prompt})
    run = snakemake(checkout, "results/config/pack.json", checkout=checkout)
    assert run.returncode == 0, run.stdout + run.stderr
    written = json.loads((checkout / "results" / "config" / "pack.json").read_text())
    assert written["pack"]["system_prompt"] == prompt


# -------------------------------------------------------------------------------------- launching


@pytest.mark.slow
def test_two_cpu_processes_share_the_threads_and_leave_no_temporary_file(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    (tmp_path / "toy.py").write_text(
        "import os, torch, accelerate\n"
        "a = accelerate.Accelerator(cpu=True)\n"
        "total = a.reduce(torch.tensor([a.process_index + 1]), 'sum').item()\n"
        "found = [a.num_processes, torch.distributed.get_backend(), total]\n"
        "open(f'out{a.process_index}', 'w').write(f'{found} {os.environ[\"OMP_NUM_THREADS\"]}')\n"
        "a.end_training()\n"  # leaving the group open aborts now and then
    )
    launch = launch_command(2, 5, ROOT / "workflow" / "accelerate.yaml")
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": python_path(tmp_path),
        "TMPDIR": str(temporary),
    }
    subprocess.run(f"{launch} -m toy", shell=True, cwd=tmp_path, env=environment, check=True)
    for rank in (0, 1):
        assert (tmp_path / f"out{rank}").read_text() == "[2, 'gloo', 3] 2"
    assert list(temporary.iterdir()) == []


def test_one_process_is_launched_without_the_multi_gpu_launcher() -> None:
    launch = launch_command(1, 8, Path("a b.yaml"))
    assert "--multi_gpu" not in launch
    assert "--num_cpu_threads_per_process 8" in launch
    assert "--config_file 'a b.yaml'" in launch


def test_the_users_accelerate_config_overrides_the_launch_settings(tmp_path: Path) -> None:
    own = tmp_path / "my accelerate.yaml"
    own.write_text("num_processes: 4\nnum_machines: 2\n")
    settings = {"num_processes": 1, "num_machines": 1, "accelerate_config": str(own)}
    settings |= {"main_process_ip": None, "main_process_port": None}
    found = launch_settings({"train": settings, "experiments": {"a": {}}}, "a")
    assert (found["num_processes"], found["num_machines"]) == (4, 2)
    launch = launch_command(num_threads=8, config_path=Path("ours.yaml"), **found)
    assert launch == (
        "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=8 "
        f"python -m higgs_pipe.training.launch --config_file '{own}' "
        "--num_cpu_threads_per_process 4 --num_machines 2"
    )


@pytest.mark.parametrize(
    "text", ["", "a: [", "num_processes: 4\n", "num_processes: many\nnum_machines: 1\n"]
)
def test_an_accelerate_config_without_process_counts_is_refused(tmp_path: Path, text: str) -> None:
    own = tmp_path / "accelerate.yaml"
    own.write_text(text)
    train = {"num_processes": 1, "num_machines": 1, "accelerate_config": str(own)}
    train |= {"main_process_ip": None, "main_process_port": None}
    with pytest.raises(UserError, match=r"train\.accelerate_config: .*num_processes and num_mach"):
        launch_settings({"train": train, "experiments": {"a": {}}}, "a")


def test_several_machines_are_started_by_srun_and_connect_to_the_first() -> None:
    launch = launch_command(16, 8, Path("a.yaml"), num_machines=2, main_process_ip="node1")
    srun = "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=8 python -m higgs_pipe"
    assert launch.startswith(srun)
    assert "--num_processes 16 --num_machines 2" in launch
    assert "--num_cpu_threads_per_process 1" in launch
    assert launch.endswith("--multi_gpu --main_process_ip node1")  # the launcher finds a port


def test_the_demo_base_is_recognised_by_its_path() -> None:
    assert is_within("resources/tiny-higgs/audio_tokenizer", "resources/tiny-higgs")
    assert is_within("./resources/tiny-higgs", "resources/tiny-higgs")
    assert not is_within("resources/tiny-higgs-2", "resources/tiny-higgs")


def test_jobs_import_this_checkout_whatever_its_path() -> None:
    prefix = environment(Path("/a {b}'c"), in_own_environment=False)
    found = subprocess.run(
        ["bash", "-c", f'{prefix}printf %s "$PYTHONPATH"'], capture_output=True, text=True
    )
    assert found.stdout == "/a {b}'c"
    bars = "HF_HUB_DISABLE_PROGRESS_BARS"
    for given, expected in (({}, "1"), ({bars: "0"}, "0")):
        command = ["bash", "-c", f"{prefix}printf %s ${bars}"]
        shown = subprocess.run(command, capture_output=True, text=True, env=given)
        assert shown.stdout == expected


def test_a_failed_run_repeats_no_error_of_an_earlier_one(tmp_path: Path) -> None:
    checkout = make_stub_checkout(tmp_path / "checkout")
    log = "2026-11-28 04:00:00,000 ERROR The manifest is {}."
    (checkout / "logs").mkdir()
    (checkout / "logs/earlier.log").write_text(log.format("empty"))
    fails = f"from pathlib import Path\nimport sys\nlog = {log.format('cut off')!r}\n"
    fails += "Path(sys.argv[sys.argv.index('--log') + 1]).write_text(log)\nsys.exit(2)\n"
    (checkout / "higgs_pipe/list_rows.py").write_text(fails)
    run = snakemake(checkout, "--cores", "1", "results/data/rows.parquet", checkout=checkout)
    assert run.returncode == 1
    assert "The manifest is cut off." in run.stderr
    assert "The manifest is empty." not in run.stderr


# The products by the file whose writing names them; the last ones only if no other is written.
PRODUCTS = {
    "adapters/a.zip": "adapter a  adapters/a",
    "merged/a/SHA256SUMS": "merged a  merged/a",
    "original/a/SHA256SUMS": "original a  original/a",
    "experiments/a/eval/metrics.json": "metrics a  experiments/a/eval/metrics.json",
    "experiments/a/train/adapter/adapter_config.json": "trained a  experiments/a/train/adapter",
    "report/index.html": "report  report/index.html",
    "packed/packing.json": "packed rows  packed",
    "bases/b/packed/packing.json": "packed rows  bases/b/packed",
    "data/index.html": "recordings  data/index.html",
    "data/clips.parquet": "clips  data/clips.parquet",
    "data/rejected.parquet": "rejected  data/rejected.parquet",
}


def test_each_product_is_named_when_its_file_is_written_or_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = products(Path(), ["a"], ["", "bases/b/"])
    for file, line in PRODUCTS.items():
        for modified_at in (1, 2):
            before = versions(made)
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).touch()
            os.utime(file, (modified_at, modified_at))
            assert closing_lines(made, before) == [line]
    labels = [line.split("  ")[0] for line in closing_lines(made, {})]
    assert labels == ["adapter a", "merged a", "original a", "metrics a", "trained a", "report"]


def test_a_run_ends_by_naming_only_what_it_wrote(tmp_path: Path) -> None:
    made = products(tmp_path, ["a", "b"], [""])
    adapters, data = tmp_path / "adapters", tmp_path / "data"
    for folder in (adapters, data):
        folder.mkdir()
    (adapters / "b.zip").touch()
    before = versions(made)
    assert closing_lines(made, before) == []
    (data / "clips.parquet").touch()
    assert closing_lines(made, before) == [f"clips  {tmp_path}/data/clips.parquet"]
    (adapters / "a.zip").touch()
    assert closing_lines(made, before) == [f"adapter a  {tmp_path}/adapters/a"]
    (tmp_path / "merged/b").mkdir(parents=True)
    seal(tmp_path / "merged/b")
    assert closing_lines(made, before) == [
        f"adapter a  {tmp_path}/adapters/a",
        f"merged b   {tmp_path}/merged/b",
    ]
