"""What is installed: by hash, and listed for those who check it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

INSTALLS = re.compile(r"pip (?:install|sync)")
LOCKED = re.compile(r"^(\S+)==(\S+)", re.MULTILINE)
HASH = re.compile(r"--hash=sha256:(\w+)")
LOCKS = sorted(ROOT.glob("requirements*.txt"))


@pytest.mark.parametrize("name", ["Makefile", "Dockerfile", ".ci/run", ".github/workflows/ci.yml"])
def test_nothing_is_installed_without_its_hash(name: str) -> None:
    text = (ROOT / name).read_text().replace("\\\n", "")
    installing = [line for line in text.splitlines() if INSTALLS.search(line)]
    assert [line for line in installing if "--require-hashes" not in line] == []
    assert bool(installing) == (name in ("Makefile", "Dockerfile"))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_has_a_hash_for_each_package_and_no_address(lock: Path) -> None:
    text = lock.read_text()
    assert all(HASH.search(part) for part in LOCKED.split(text)[3::3])
    assert "://" not in text


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What ``make sbom`` lists, by name."""
    folder = tmp_path_factory.mktemp("sbom")
    places = [f"BIN={Path(sys.executable).parent}", f"AUDIT={folder / 'tools'}"]
    places.append(f"SBOM={folder / 'sbom.json'}")
    command = ["make", "--silent", "--old-file=.venv/.ready", *places, "sbom"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    bill = json.loads((folder / "sbom.json").read_text())
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "higgs-pipe")
    return {component["name"]: component for component in bill["components"]}


def test_the_bill_of_materials_names_each_package_with_its_version_and_hashes(
    listed: dict[str, dict[str, Any]],
) -> None:
    lock = (ROOT / "requirements.txt").read_text()
    [_, *parts] = LOCKED.split(lock)
    packages = dict(zip(parts[::3], zip(parts[1::3], parts[2::3], strict=True), strict=True))
    assert listed.keys() == packages.keys()
    for name, (version, text) in packages.items():
        component = listed[name]
        assert component["purl"].split("?")[0] == f"pkg:pypi/{name}@{version}"
        [distribution] = component["externalReferences"]
        hashes = {each["content"] for each in distribution["hashes"]}
        assert hashes == set(HASH.findall(text)), name
