"""Fuzz the readers, guided by the lines that each input reaches; :mod:`fuzz.page` starts this.

Needs atheris. Its arguments are those of libFuzzer.
"""

import sys

import atheris

READERS = ["higgs_pipe.data", "higgs_pipe.planning", "higgs_pipe.publishing"]

with atheris.instrument_imports(include=READERS):
    from fuzz import targets

if __name__ == "__main__":
    atheris.Setup(sys.argv, targets.run)
    atheris.Fuzz()
