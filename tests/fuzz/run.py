"""Fuzz the readers, guided by the lines that each input reaches: ``make fuzz SECONDS=60``.

Needs atheris. What it has learned stays in ``.fuzz/corpus/``; an input that breaks a reader is
written to ``.fuzz/``, and belongs into ``tests/fuzz/found/`` once the reader is fixed.
"""

import argparse
import hashlib
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["higgs_pipe.data", "higgs_pipe.publishing"]):
    from fuzz import targets

FOLDER = Path(".fuzz")
MAX_INPUT_BYTES = 20_000
MAX_MEMORY_MB = 4096
MAX_SECONDS_PER_INPUT = 20


def main() -> None:
    """Write the seeds and fuzz for so many seconds; ends with libFuzzer's exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    corpus = FOLDER / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in targets.seeds():
        (corpus / hashlib.sha256(seed).hexdigest()).write_bytes(seed)
    flags = [
        f"-max_total_time={options.seconds}",
        f"-max_len={MAX_INPUT_BYTES}",
        f"-rss_limit_mb={MAX_MEMORY_MB}",
        f"-timeout={MAX_SECONDS_PER_INPUT}",
        f"-artifact_prefix={FOLDER}/",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], targets.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
