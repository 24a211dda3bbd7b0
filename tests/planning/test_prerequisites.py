"""Requirements for planning the workflow: versions and the path of the checkout."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

from higgs_pipe.errors import UserError
from higgs_pipe.planning.prerequisites import check_place, check_snakemake


@pytest.mark.parametrize("version", ["9.27.0", "9.27.1", "9.30", "10.0.0a1"])
def test_a_recent_enough_snakemake_passes(version: str) -> None:
    check_snakemake(version)


def test_the_snakemake_of_the_lock_passes() -> None:
    check_snakemake()
    check_place(ROOT)


@pytest.mark.parametrize("version", ["7.32.4", "8.30.0", "9.5.1", "9.26.9"])
def test_an_old_snakemake_is_refused_with_what_to_install(version: str) -> None:
    with pytest.raises(UserError) as caught:
        check_snakemake(version)
    assert version in str(caught.value)
    assert "pip install 'snakemake>=9.27'" in str(caught.value)


def test_a_checkout_in_a_folder_with_braces_is_refused() -> None:
    with pytest.raises(UserError, match=r"a \{b\}/checkout"):
        check_place(Path("a {b}/checkout"))


def test_make_names_the_python_that_is_too_old(tmp_path: Path) -> None:
    old = tmp_path / "python3.10"
    old.write_text(f"#!{sys.executable}\nimport sys\nsys.exit(1)\n")
    old.chmod(0o755)
    for name in ("requirements-bootstrap.txt", "requirements.txt"):
        (tmp_path / name).touch()
    command = ["make", "-f", str(ROOT / "Makefile"), f"PYTHON={old}", "environment"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert f"{old} is missing or older than Python 3.11" in run.stderr
    assert not (tmp_path / ".venv").exists()
