"""Fuzz the readers for a number of seconds: ``make fuzz SECONDS=600``.

It begins with the seeds of :mod:`fuzz.targets` and with ``tests/fuzz/corpus.zip``, which ``--page``
writes anew: the smallest inputs that reached something new. An input that breaks a reader is
written to ``.fuzz/``, and belongs into ``tests/fuzz/found/`` once the reader is fixed.
"""

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from fuzz import targets
from pages import machine_now, put_table

FOLDER = Path(".fuzz")
CORPUS = Path(__file__).with_name("corpus.zip")
MAX_CORPUS_BYTES = 250_000
MAX_INPUT_BYTES = 20_000
MAX_MEMORY_MB = 4096
MAX_SECONDS_PER_INPUT = 20
NUM_LINES_SHOWN = 30
# The last line of a run: the inputs tried, the edges of the code that they reached.
DONE = re.compile(r"#(\d+)\s+DONE\s+cov: (\d+)")


def main() -> None:
    """Fuzz; end with libFuzzer's exit status, or write the table and the corpus."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--page", type=Path, help="put the table there, and keep the corpus")
    options = parser.parse_args()
    shutil.rmtree(FOLDER, ignore_errors=True)
    learned = FOLDER / "corpus"
    learned.mkdir(parents=True)
    for content in [*targets.seeds(), *kept()]:
        (learned / hashlib.sha256(content).hexdigest()).write_bytes(content)
    num_inputs, num_edges = fuzz(options.seconds, learned)
    if options.page is not None:
        keep(learned)
        put_table(options.page, "fuzz", section(options.seconds, num_inputs, num_edges))


def fuzz(seconds: int, learned: Path) -> tuple[int, int]:
    """Fuzz, and return how many inputs were tried and edges reached; exits where one is broken."""
    flags = [
        f"-max_total_time={seconds}",
        f"-max_len={MAX_INPUT_BYTES}",
        f"-rss_limit_mb={MAX_MEMORY_MB}",
        f"-timeout={MAX_SECONDS_PER_INPUT}",
        f"-artifact_prefix={FOLDER}/",
    ]
    command = [sys.executable, "-m", "fuzz.run", *flags, str(learned)]
    run = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    found = DONE.search(run.stderr)
    print(*run.stderr.splitlines()[-NUM_LINES_SHOWN:], sep="\n")
    if run.returncode != 0 or found is None:
        sys.exit(run.returncode or 1)
    return int(found[1]), int(found[2])


def kept() -> list[bytes]:
    """The inputs of the corpus."""
    if not CORPUS.is_file():
        return []
    with zipfile.ZipFile(CORPUS) as archive:
        return [archive.read(name) for name in archive.namelist()]


def keep(learned: Path) -> None:
    """Write the corpus: the smallest inputs, each of which reached something new."""
    inputs = sorted(learned.iterdir(), key=lambda path: (path.stat().st_size, path.name))
    with CORPUS.open("wb") as stream, zipfile.ZipFile(stream, "w") as archive:
        for path in inputs:
            name = zipfile.ZipInfo(path.name[:16])  # of no time
            archive.writestr(name, path.read_bytes(), zipfile.ZIP_DEFLATED)
            if stream.tell() > MAX_CORPUS_BYTES:
                break


def section(seconds: int, num_inputs: int, num_edges: int) -> list[str]:
    """The lines of the section."""
    return [
        f"{machine_now()}: {num_inputs:,} inputs in {seconds} seconds reached {num_edges:,} edges, "
        f"and none broke a reader. Kept in `tests/fuzz/corpus.zip`: {len(kept())} inputs.",
    ]


if __name__ == "__main__":
    main()
