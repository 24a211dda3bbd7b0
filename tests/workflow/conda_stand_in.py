"""A stand-in for conda that answers Snakemake with uv, for machines without conda.

An environment is built for real from its file: a virtual environment of this Python with the
packages of its ``pip:`` part. What conda itself would install is this machine's: Python and
native libraries.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

PREFIX = Path(__file__).resolve().parents[1]  # where `write` below puts this file: PREFIX/bin/conda
ACTIVATE = """VIRTUAL_ENV=$1
PATH="$VIRTUAL_ENV/bin:$PATH"
export VIRTUAL_ENV PATH
"""


def write(prefix: Path) -> Path:
    """Install the stand-in below ``prefix``; returns the folder to put into PATH."""
    folder = prefix / "bin"
    folder.mkdir(parents=True)
    program = folder / "conda"
    program.write_text(f"#!{sys.executable}\n{Path(__file__).read_text()}")
    program.chmod(0o755)
    (folder / "activate").write_text(ACTIVATE)
    return folder


def create(arguments: list[str]) -> None:
    """Build the environment of ``--file`` at ``--prefix``."""
    file = Path(arguments[arguments.index("--file") + 1])
    prefix = arguments[arguments.index("--prefix") + 1]
    [packages] = [
        item["pip"]
        for item in yaml.safe_load(file.read_text())["dependencies"]
        if isinstance(item, dict)
    ]
    uv = [str(Path(sys.executable).with_name("uv"))]
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, prefix], check=True)
    install = [*uv, "pip", "install", "--quiet", "--python", f"{prefix}/bin/python", *packages]
    subprocess.run(install, check=True)
    copy_compiled(Path(sys.prefix), Path(prefix))


def copy_compiled(source: Path, target: Path) -> None:
    """Give an environment what another one has compiled of the same modules: a minute's work.

    Python compiles anew what does not fit.
    """
    for compiled in source.glob("lib/python*/site-packages/**/__pycache__/*.pyc"):
        folder = target / compiled.parent.relative_to(source)
        if folder.parent.is_dir():
            folder.mkdir(exist_ok=True)
            shutil.copy2(compiled, folder)


def main(arguments: list[str]) -> None:
    """Answer one command of conda."""
    match arguments:
        case ["--version"]:
            print("conda 25.1.0")
        case ["info", "--json"]:
            print(json.dumps({"conda_prefix": str(PREFIX), "platform": "linux-64"}))
        case ["config", "--get", "channel_priority", "--json"]:
            print(json.dumps({"get": {"channel_priority": "strict"}}))
        case ["env", "create", *rest]:
            create(rest)
        case ["clean", *_]:
            pass
        case _:
            sys.exit(f"the stand-in for conda does not know: {arguments}")


if __name__ == "__main__":
    main(sys.argv[1:])
