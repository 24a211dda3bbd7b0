"""Whole runs of the workflow with the real stages: recordings in, a packaged adapter out.

Jobs are forks of a process that has imported the stages. ``test_environments.py`` runs the workflow
with a new process for each job.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pyarrow.parquet as pq
import pytest
import yaml
from helpers import REAL_SPEECH, ROOT, files_with_secrets, needs_real_speech, plant_secrets, tone
from workflow.forked_snakemake import run_snakemake
from workflow.forked_stages import forking_python

import higgs_pipe
from higgs_pipe.config.stages import STAGES
from higgs_pipe.higgs.v2 import miniature

pytestmark = pytest.mark.slow

# A few steps are enough to see everything move.
SHORT = {"num_epochs": 6, "rows_per_step": 4, "learning_rate": 5e-3, "eval_steps": 10}
SPOKEN = {"num_prompts": 3, "max_seconds": 3.0}


def snakemake(
    folder: Path, *words: str, python: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    words = ("--snakefile", str(ROOT / "Snakefile"), "--cores", "2", *words)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return run_snakemake([*words], folder, environment, python)


def snakemake_with_forks(folder: Path, *words: str) -> str:
    """Return what it wrote on stderr."""
    finished = snakemake(folder, *words, python=str(forking_python()))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stderr


def write_config(folder: Path, manifest: Path, **sections: dict) -> None:
    settings = yaml.safe_load((ROOT / "config.yaml").read_text()) | {"manifest": str(manifest)}
    for section, values in sections.items():
        settings[section] |= values
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo in a folder of its own, with less to train and speak, of somebody with secrets."""
    folder = tmp_path_factory.mktemp("demo")
    write_config(folder, ROOT / "examples/demo/manifest.jsonl", train=SHORT, eval=SPOKEN)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in plant_secrets(tmp_path_factory.mktemp("secrets")).items():
            patch.setenv(name, value)
        closing = snakemake_with_forks(folder)
    (folder / "closing.txt").write_text(closing)
    return folder


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


# Stages of the Hub, and of forms that the demo does not ask for.
OFF = ("models", "push", "merge")


def assert_it_learnt(folder: Path) -> None:
    metrics = read_json(folder / "results/experiments/default/eval/metrics.json")
    for key in ("eval_loss", "eval_text_loss", "eval_stop_loss"):
        assert metrics["adapter"][key] < metrics["base"][key]
    lines = (folder / "results/experiments/default/train/metrics.jsonl").read_text().splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
    assert losses[-1] < losses[0] * 2 / 3


def test_the_demo_writes_every_result_where_it_belongs(demo: Path) -> None:
    results = demo / "results"
    expected = [
        *(f"config/{stage}.json" for stage in STAGES if stage not in OFF),
        *(f"data/{name}" for name in ("clips.parquet", "rejected.parquet", "validation.json")),
        "codes/shard-00000.parquet",
        "codes/shard-00001.parquet",
        *(f"packed/{name}" for name in ("train.parquet", "eval.parquet", "packing.json")),
        "experiments/default/train/adapter/adapter_config.json",
        "experiments/default/train/adapter/adapter_model.safetensors",
        "experiments/default/train/metrics.jsonl",
        "experiments/default/train/preflight.json",
        "experiments/default/eval/metrics.json",
        "experiments/default/eval/clips.parquet",
        "experiments/default/eval/breakdown.json",
        "experiments/default/eval/generation.json",
        "experiments/default/eval/generation.parquet",
        "experiments/default/eval/verdict.json",
        "experiments/default/samples/01-adapter-t1.wav",
        "adapters/default/README.md",
        "adapters/default/provenance.json",
        "adapters/default.zip",
        "report/index.html",
    ]
    assert [path for path in expected if not (results / path).is_file()] == []
    closing = (demo / "closing.txt").read_text()
    for path in ("adapters/default", "experiments/default/eval/metrics.json", "report/index.html"):
        assert f"results/{path}\n" in closing


def test_no_secret_is_in_any_result_log_or_snakemake_metadata(demo: Path) -> None:
    num_files, found = files_with_secrets(demo)
    assert {path.name for path in demo.iterdir()} >= {".snakemake", "logs", "results"}
    assert num_files > 150
    assert found == []


def test_the_demo_adapter_learns(demo: Path) -> None:
    assert_it_learnt(demo)


def test_counts_of_the_demo_agree_across_stages(demo: Path) -> None:
    results = demo / "results"
    validation = read_json(results / "data/validation.json")
    packing = read_json(results / "packed/packing.json")
    metrics = read_json(results / "experiments/default/eval/metrics.json")["adapter"]
    for split in ("train", "eval"):
        assert packing[split]["num_samples"] == validation["splits"][split]["num_clips"]
    assert metrics["num_clips"] == packing["eval"]["num_samples"]
    assert metrics["num_text_labels"] == packing["eval"]["num_text_labels"]
    assert metrics["num_audio_labels"] == packing["eval"]["num_audio_labels"]
    clips = pq.read_table(results / "experiments/default/eval/clips.parquet")
    assert len(clips) == metrics["num_clips"]


def test_the_report_shows_what_eval_found(demo: Path) -> None:
    page = (demo / "results/report/index.html").read_text()
    metrics = read_json(demo / "results/experiments/default/eval/metrics.json")
    for model in ("adapter", "base"):
        assert f"{metrics[model]['eval_loss']:.3f}" in page


def test_every_artefact_names_the_version(demo: Path) -> None:
    results = demo / "results"
    version = higgs_pipe.__version__
    run = read_json(results / "experiments/default/train/run.json")
    provenance = read_json(results / "adapters/default/provenance.json")
    assert run["higgs_pipe"] == provenance["higgs_pipe"]["version"] == version
    pages = ("report/index.html", "data/index.html", "adapters/default/README.md")
    for name in pages:
        text = (results / name).read_text().replace("\\", "")
        assert re.search(rf"higgs.pipe {re.escape(version)}\b", text), name


def test_snakemakes_report_has_pages_charts_and_tables_with_captions(
    demo: Path, tmp_path: Path
) -> None:
    finished = snakemake(demo, "--report", str(tmp_path / "report.zip"))
    assert finished.returncode == 0, finished.stderr
    page = ZipFile(tmp_path / "report.zip").read("report/report.html").decode()
    entry = re.compile(r'"results/([^"]+)": {"name".*?"caption": "(.*?)", "mime_type"')
    captions = dict(entry.findall(page))
    drawn = (demo / "results/report/figures").glob("*.svg")
    figures = [f"report/figures/{path.name}" for path in drawn]
    others = ["report/index.html", "data/index.html", "data/validation.json"]
    others += [f"experiments/default/eval/{name}.json" for name in ("metrics", "verdict")]
    assert sorted(captions) == sorted(figures + others)
    assert len(set(captions.values()) - {""}) == len(captions)


def test_the_notebook_opens_the_demos_results(demo: Path, tmp_path: Path) -> None:
    notebook = ROOT / "examples/notebook/results.ipynb"
    assert not any(cell.get("outputs") for cell in read_json(notebook)["cells"])
    program, output = Path(sys.executable).with_name("jupyter-execute"), tmp_path / "done.ipynb"
    subprocess.run(
        [program, notebook, "--output", output],
        env=os.environ | {"HIGGS_RESULTS": str(demo / "results")},
        check=True,
    )
    executed = output.read_text()
    metrics = read_json(demo / "results/experiments/default/eval/metrics.json")
    assert f"{metrics['adapter']['eval_audio_loss']:.3f}" in executed
    assert executed.count("<audio ") == 2 + 2 * 4  # clips; two prompts by four voices
    assert executed.count('"image/png"') == 1


def test_a_second_run_does_nothing(demo: Path) -> None:
    finished = snakemake(demo)
    assert "Nothing to be done" in finished.stdout + finished.stderr


def test_a_single_stage_can_be_rerun_with_the_same_numbers(demo: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(demo, tmp_path / "copy", symlinks=True)
    metrics = folder / "results/experiments/default/eval/metrics.json"
    before = metrics.read_text()
    metrics.unlink()
    logs = {path: path.stat().st_mtime_ns for path in (folder / "logs").rglob("*.log")}
    snakemake_with_forks(folder, "eval")
    assert metrics.read_text() == before
    rerun = {path.stem for path, wrote in logs.items() if path.stat().st_mtime_ns > wrote}
    assert {"eval"} <= rerun <= {"eval", "accept"}


@pytest.fixture(scope="module")
def forgotten(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo, evaluated on ten tones of "another language" too; an eleventh row is trained on."""
    folder = shutil.copytree(demo, tmp_path_factory.mktemp("other") / "copy", symlinks=True)
    rows = [
        {
            "audio": str(tone(folder / f"tones/{i}.wav", 0.6 + 0.05 * i, 150 + 40 * i)),
            "text": f"Ton Nummer {i}, eine Weile gehalten",
            "speaker": f"tone-{i % 2}",
            "language": "de",
        }
        for i in range(10)
    ]
    clips = pq.read_table(folder / "results/data/clips.parquet").to_pylist()
    trained = next(clip for clip in clips if clip["split"] == "train")
    rows.append({"audio": trained["audio_path"], "text": "Etwas anderes."})
    (folder / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    snakemake_with_forks(folder, "report", "--config", "eval={other_manifest: other.jsonl}")
    return folder


def test_other_recordings_are_evaluated_without_rerunning_the_demo(
    demo: Path, forgotten: Path
) -> None:
    folder = forgotten / "results/experiments/default/eval/other"
    metrics = read_json(folder / "metrics.json")
    assert metrics["adapter"]["num_clips"] == metrics["base"]["num_clips"] == 10
    assert metrics["adapter"]["eval_audio_loss"] != metrics["base"]["eval_audio_loss"]
    assert read_json(folder / "generation.json")["num_prompts"] == 3  # as the demo asks for
    assert len(list((folder / "samples").glob("*-adapter-t1.wav"))) == 3
    groups = read_json(folder / "breakdown.json")["groups"]
    assert ("language", "de", 10) in [(g["kind"], g["name"], g["num_clips"]) for g in groups]
    [rejected] = pq.read_table(forgotten / "results/other/data/rejected.parquet").to_pylist()
    assert (rejected["line"], rejected["reason"]) == (11, "also_in_training")
    for path in ("eval/metrics.json", "eval/verdict.json", "train/metrics.jsonl"):
        of_demo, own = (f / "results/experiments/default" / path for f in (demo, forgotten))
        assert own.stat().st_mtime_ns == of_demo.stat().st_mtime_ns


def test_the_report_shows_the_forgetting_verdict(demo: Path, forgotten: Path) -> None:
    verdict = read_json(forgotten / "results/experiments/default/eval/other/verdict.json")
    page = (forgotten / "results/report/index.html").read_text()
    assert page.count(verdict["sentences"][0]) == 2  # in the verdict, and in its own part
    assert "Left out: also in training 1." in page
    assert 'id="other"' not in (demo / "results/report/index.html").read_text()


@pytest.fixture(scope="module")
def two_bases(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo, with a short experiment on another miniature beside its own."""
    folder = shutil.copytree(demo, tmp_path_factory.mktemp("two") / "copy", symlinks=True)
    miniature.build(folder / "other", seed=1)
    short = "max_steps: 2, sample_steps: null, eval_steps: 2"
    experiments = f"experiments={{default: {{}}, x: {{base_model: other, {short}}}}}"
    snakemake_with_forks(folder, "package", "report", "--config", experiments)
    return folder


def test_an_experiment_on_another_base_runs_alongside_the_demos(
    demo: Path, two_bases: Path
) -> None:
    own, other = (
        read_json(two_bases / f"results/experiments/{name}/eval/metrics.json")
        for name in ("default", "x")
    )
    assert own["base"]["num_audio_labels"] == other["base"]["num_audio_labels"]
    assert own["base"]["eval_loss"] != other["base"]["eval_loss"]
    provenance = read_json(two_bases / "results/adapters/x/provenance.json")
    pinned = read_json(two_bases / "results/bases/other/models/base_model.json")
    assert provenance["base_model"]["fingerprint"] == pinned["fingerprint"]
    page = (two_bases / "results/report/index.html").read_text()
    assert "resources/tiny-higgs, other" in page
    assert "Packing for other" in page


def test_results_that_do_not_depend_on_the_new_base_are_reused(demo: Path, two_bases: Path) -> None:
    for path in (
        "data/clips.parquet",
        "codes/shard-00000.parquet",
        "packed/train.parquet",
        "experiments/default/train/metrics.jsonl",
        "experiments/default/eval/metrics.json",
        "adapters/default.zip",
    ):
        before, after = (folder / "results" / path for folder in (demo, two_bases))
        assert after.stat().st_mtime_ns == before.stat().st_mtime_ns


@pytest.fixture(scope="module")
def demo_v3(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's results, and after them those of `make demo-v3`, trained for two steps."""
    folder = shutil.copytree(demo, tmp_path_factory.mktemp("v3") / "copy", symlinks=True)
    settings = yaml.safe_load((ROOT / "examples/demo/v3.yaml").read_text())
    settings["manifest"] = str(ROOT / settings["manifest"])
    settings["experiments"]["v3"] |= {"max_steps": 2, "eval_steps": 2}
    settings["package"] = {"forms": ["peft", "merged"]}
    settings["eval"] = {"num_prompts": 2, "max_seconds": 2.0}
    (folder / "v3.yaml").write_text(yaml.safe_dump(settings))
    snakemake_with_forks(folder, "package", "--configfile", "v3.yaml")
    return folder


def test_the_higgs_tts_3_demo_is_packaged_from_the_codes_of_the_demo(
    demo: Path, demo_v3: Path
) -> None:
    for shard in ("shard-00000", "shard-00001"):
        before, after = (f / f"results/codes/{shard}.parquet" for f in (demo, demo_v3))
        assert after.stat().st_mtime_ns == before.stat().st_mtime_ns
    metrics = read_json(demo_v3 / "results/experiments/v3/eval/metrics.json")
    assert not any("text" in key for key in metrics["adapter"])
    card = (demo_v3 / "results/adapters/v3/README.md").read_text()
    assert "Non-Commercial License Agreement" in card
    assert read_json(demo_v3 / "results/merged/v3/proof.json")["form"] == "merged"
    log = (demo_v3 / "logs/experiments/v3/train.log").read_text()
    assert "research and non-commercial use" in log


def test_a_bad_manifest_ends_with_its_error_and_leaves_no_results(tmp_path: Path) -> None:
    manifest = tmp_path / "bad.jsonl"
    manifest.write_text('{"audio": "a.wav", "text": "Hello."}\n{"audio": oops}\n')
    write_config(tmp_path, manifest)
    finished = snakemake(tmp_path)
    assert finished.returncode != 0
    assert f"{manifest}:2: " in finished.stderr
    assert "Traceback" not in finished.stdout + finished.stderr
    assert not (tmp_path / "results/data").exists() or not any(
        path.is_file() for path in (tmp_path / "results/data").rglob("*")
    )


@needs_real_speech
def test_recordings_of_real_speech_become_an_adapter(tmp_path: Path) -> None:
    training = SHORT | {"num_epochs": 12, "rows_per_step": 2, "sample_steps": None}
    write_config(tmp_path, REAL_SPEECH, train=training, eval={"num_prompts": 2})
    snakemake_with_forks(tmp_path, "package")
    assert_it_learnt(tmp_path)
    validation = read_json(tmp_path / "results/data/validation.json")
    assert (validation["num_clips"], validation["num_rejected"]) == (13, 0)
    assert read_json(tmp_path / "results/adapters/default/provenance.json")["verification"]


def test_a_failed_run_ends_with_the_stages_error_its_log_and_the_next_step(tmp_path: Path) -> None:
    write_config(tmp_path, tmp_path / "none.jsonl")
    failed = snakemake(tmp_path, "validate")
    assert failed.returncode == 1
    *_, last_words = failed.stderr.rpartition("At least one job did not complete")
    assert f"{tmp_path}/none.jsonl: " in last_words
    assert "log: logs/list_rows.log" in last_words
    assert "same command" in last_words.splitlines()[-1]
