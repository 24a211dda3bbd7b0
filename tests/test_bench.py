"""The benchmarks of training, where they can be run without a GPU."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from helpers import ROOT, wait_until


@pytest.fixture
def train_step(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(ROOT / "bench"), *sys.path])
    import train_step

    return train_step


def test_each_variant_of_a_micro_step_is_measured_and_written(train_step: Any) -> None:
    config = train_step.model_config(128, 2, 600)
    options = argparse.Namespace(num_clips=4, repetitions=1)
    variants = [v._replace(is_compiled=False) for v in train_step.GPU_VARIANTS]
    found = train_step.measure_variants(options, config, torch.device("cpu"), variants)
    assert [line["variant"] for line in found] == [variant.name for variant in variants]
    assert all(line["positions_per_second"] > 0 for line in found)
    table = train_step.cuda_table(found, "a machine")
    assert len(table) == 4 + len(variants)
    assert table[4].count("|") == table[2].count("|")


def test_the_memory_tables_in_the_docs_match_the_formula(train_step: Any) -> None:
    import forecast

    page = (ROOT / "docs/gpu-memory.md").read_text()
    for name in ("v2_config", "v3_config"):
        assert "\n".join(forecast.tables(getattr(forecast, name)())) in page


def test_the_table_in_the_tutorial_matches_the_formula(train_step: Any) -> None:
    import hours

    page = (ROOT / "docs/tutorials/own-voice.md").read_text()
    assert "\n".join(hours.table()) in page


@pytest.fixture
def on_a_gpu(train_step: Any) -> Any:
    import on_a_gpu

    return on_a_gpu


def test_each_section_for_a_gpu_runs_on_a_cpu_and_fills_the_table(on_a_gpu: Any) -> None:
    sections = {n: s for n, s in on_a_gpu.SECTIONS.items() if n not in ("tests", "variants")}
    found = {name: section.measure(True) for name, section in sections.items()}
    assert found["one_row_graphs"]["plans"][0]["is_padded"]
    assert found["tokenize"]["same_codes"] == 1
    found["tests"] = {"summary": "9 passed"}
    table = "\n".join(on_a_gpu.goals_table(found, "a machine"))
    assert on_a_gpu.NOT_MEASURED not in table


@pytest.mark.parametrize(
    ("kernel", "part"),
    [
        ("void pytorch_flash::flash_fwd_kernel<Traits<cutlass::bfloat16_t>>", "attention"),
        ("nvjet_sm90_tst_128x256_64x4_2x1_v_bz_coopA_TNN", "products"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm>", "products"),
        ("triton_poi_fused_add_div_ge_mul_scalar_tensor_silu_unsqueeze_where_8", "other"),
    ],
)
def test_each_kernel_is_assigned_to_a_part_of_the_step(
    on_a_gpu: Any, kernel: str, part: str
) -> None:
    assert on_a_gpu.part_of_step(kernel) == part


def test_the_table_of_goals_in_the_docs_matches_the_script(on_a_gpu: Any) -> None:
    """But for its last column, which a GPU fills."""
    page = (ROOT / "docs/performance.md").read_text()
    lines = on_a_gpu.goals_table({}, "")
    assert len(lines) == 15
    assert all(f"\n{line.removesuffix(f'{on_a_gpu.NOT_MEASURED} |')}" in page for line in lines)


def test_each_job_of_a_workflow_gets_the_peak_of_its_own_time(
    train_step: Any, tmp_path: Path
) -> None:
    import real_size

    rows = {"pack": ("2.0", "100.5", 1000), "train/default": ("30", "-", 1031)}
    for name, (seconds, peak_mb, ended) in rows.items():
        path = tmp_path / f"{name}.tsv"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"s\tmax_rss\n{seconds}\t{peak_mb}\n")
        os.utime(path, (ended, ended))
    used = {997: 9.0, 998: 1.0, 1000: 2.0, 1001: 3.0, 1030: 5.0, 1032: 7.0}
    jobs = real_size.jobs_of(tmp_path, [real_size.Reading(*pair) for pair in used.items()])
    assert jobs == [("pack", 2.0, 100.5, 2.0), ("train/default", 30.0, 0.0, 5.0)]


def test_a_section_that_fails_or_hangs_does_not_affect_the_others(
    on_a_gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def run(seconds: float, command: list[str], log: Path, _: Any) -> int | None:
        name = command[command.index("--section") + 1]
        log.write_text("Traceback\nValueError: no\n")
        (tmp_path / f"{name}.json").write_text(json.dumps({"positions_per_second": 1}))
        return {"warm": None, "native": 1}.get(name, 0)

    monkeypatch.setattr(on_a_gpu, "run_within", run)
    on_a_gpu.run_sections(tmp_path, ["shipped", "warm", "native", "one_row"], True, minutes=1)
    assert capsys.readouterr().out.splitlines() == [
        'shipped: {"positions_per_second": 1}',
        "warm: not finished within 60 s",
        "native: failed: ValueError: no",
        'one_row: {"positions_per_second": 1}',
    ]


def has_ended(pid: int) -> bool:
    """Also if who adopted the process has not asked for its exit code yet."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_a_section_that_times_out_leaves_no_process(on_a_gpu: Any, tmp_path: Path) -> None:
    program = (
        "import subprocess; sleep = subprocess.Popen(['sleep', '60']); "
        "print(sleep.pid, flush=True); sleep.wait()"
    )
    log = tmp_path / "log"
    assert on_a_gpu.run_within(3, [sys.executable, "-c", program], log, os.environ) is None
    pid = int(log.read_text())
    wait_until(lambda: has_ended(pid), seconds=10)
    assert on_a_gpu.run_within(60, [sys.executable, "-c", "exit(7)"], log, os.environ) == 7


WITHOUT = """
import sys
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec
PathFinder.find_spec = lambda name, *args: (
    None if name.partition(".")[0] in ("snakemake", "pyarrow") else find_spec(name, *args)
)
sys.path[:0] = ["bench", "."]
import on_a_gpu

on_a_gpu.main([sys.argv[1], "--tiny", "--section", "shipped"])
"""


def test_training_is_measured_without_snakemake_and_pyarrow(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", WITHOUT, str(tmp_path)], cwd=ROOT, check=True)
    found = json.loads((tmp_path / "shipped.json").read_text())
    assert found["positions_per_second"] > 0
    assert "PyTorch" in found["machine"]


def test_a_ratio_misses_its_goal_only_beyond_its_noise(train_step: Any) -> None:
    from rows import Row

    rounds = [1.7, 2.0, 2.1]  # a median of 2.0, and a noise of 0.2
    goals = {2.1: (False, False), 2.3: (True, False), 1.7: (False, True)}
    for goal, missed in goals.items():
        found = Row("a", rounds, goal), Row("b", rounds, goal, at_least=False)
        assert tuple(row.is_missed for row in found) == missed
        assert [row.value for row in found] == [2.0, 2.0]


def test_a_speedup_is_the_time_of_the_other_over_ours(
    train_step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import all as benches

    seconds = {"native": [4.0], "ours": [1.0], "body": [0.8]}
    monkeypatch.setattr(train_step, "build_round", lambda *_: None)
    monkeypatch.setattr(benches, "in_turn", lambda *_: seconds)
    speed, time_over_body, other_speed = benches.training_rows()
    assert (speed.value, time_over_body.value, other_speed.value) == (4.0, 1.25, 4.0)


def test_a_missed_goal_exits_with_1(
    train_step: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import all as benches
    from rows import Row

    page, shown, output = (tmp_path / name for name in ("page.md", "shown.md", "results.json"))
    page.write_text("<!-- bench -->\n<!-- end of bench -->\nAnd more.\n")
    shown.write_text("<!-- ratios -->\n<!-- end of ratios -->\n")
    for ratio, status in ((2.0, 0), (0.5, 1)):
        monkeypatch.setattr(
            benches, "rows_apart", lambda name, r=ratio: ([Row(name, [r], 1.0)], 0.5)
        )
        words = ["all.py", "--only", "packing", "gpu", "--output", str(output)]
        words += ["--page", str(page), "--performance", str(shown)]
        monkeypatch.setattr(sys, "argv", words)
        assert benches.main() == status
        judged = "**missed**" if status else "reached"
        assert f"| packing | {ratio:.2f} | 0.00 | at least 1 | {judged} |" in page.read_text()
        assert page.read_text().endswith("And more.\n")
        assert "| gpu |" in shown.read_text()
        assert "| packing |" not in shown.read_text()
        found = json.loads(output.read_text())
        assert found["rows"][0]["value"] == ratio
        assert found["cpu_minutes"] == {"packing": 0.5, "gpu": 0.5}


def test_remeasured_stages_replace_their_rows_and_notes(tmp_path: Path) -> None:
    from soak import with_rows_replaced

    page = tmp_path / "page.md"
    notes = ["Measured again: pack: Monday", "Measured again: pack, measure: Tuesday"]
    table = ["| stage | rows |", "|---|---|", "| pack | 1 |", "| measure | 2 |"]
    lines = "\n".join(["Sunday", "", notes[0], "", notes[1], "", *table])
    page.write_text(f"<!-- soak -->\n{lines}\n<!-- end of soak -->\n")
    found = with_rows_replaced(page, ["| pack | 3 |"], "Friday")
    assert found == [
        "Sunday",
        "",
        "Measured again: pack: Friday",
        "",
        notes[1],
        "",
        *(*table[:2], "| pack | 3 |", table[3]),
    ]
