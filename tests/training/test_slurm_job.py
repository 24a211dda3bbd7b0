"""The place of a launcher in a Slurm job, from Slurm's variables."""

import argparse
from pathlib import Path

import pytest
from helpers import ROOT

from higgs_pipe.training.launch import FIRST_PORT, place_in_slurm_job

SCONTROL = """#!/bin/sh
case "$4" in
  "gpu[07-08]") printf 'gpu07\\ngpu08\\n' ;;
  gpu07) echo 'NodeName=gpu07 NodeAddr=10.0.0.7 NodeHostName=gpu07 OS=Linux 6.1' ;;
esac
"""
JOB = {"SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "gpu[07-08]", "SLURM_JOB_ID": "123456"}


@pytest.fixture(autouse=True)
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scontrol").write_text(SCONTROL)
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def options(config_file: Path, **given: object) -> argparse.Namespace:
    options = {"machine_rank": None, "main_process_ip": None, "main_process_port": None}
    return argparse.Namespace(config_file=str(config_file), **{**options, **given})


def test_rank_address_and_port_come_from_slurm() -> None:
    found = options(ROOT / "workflow/accelerate.yaml")
    place_in_slurm_job(found, JOB)
    assert found.machine_rank == 1
    assert found.main_process_ip == "10.0.0.7"
    assert found.main_process_port == FIRST_PORT + 3456


def test_a_given_address_and_port_are_kept() -> None:
    found = options(ROOT / "workflow/accelerate.yaml", main_process_ip="me", main_process_port=9)
    place_in_slurm_job(found, JOB)
    assert (found.main_process_ip, found.main_process_port) == ("me", 9)


def test_the_users_accelerate_config_can_name_the_first_machine(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(
        "num_machines: 2\nmachine_rank: 0\nmain_process_ip: head\nmain_process_port: 7\n"
    )
    found = options(own)
    place_in_slurm_job(found, JOB)
    assert (found.machine_rank, found.main_process_ip, found.main_process_port) == (1, "head", 7)
