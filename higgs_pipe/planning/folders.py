"""Files in a folder given as a manifest; the rules and the readers must see the same ones."""

import os
from pathlib import Path

from higgs_pipe.planning.file_names import AUDIO_ENDINGS, TRANSCRIPT_ENDINGS


def files_below(folder: Path) -> list[Path]:
    """Return all files below a folder in order, following links, each folder once.

    A folder that is also reached by a link counts at its own place. Hidden files are included, the
    contents of hidden folders are not.
    """
    found: list[Path] = []
    seen: set[str] = set()
    places = [folder]
    while places:
        links: list[Path] = []
        for place in places:
            for parent, folders, names in os.walk(place):
                if (real := os.path.realpath(parent)) in seen:
                    folders.clear()
                    continue
                seen.add(real)
                folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
                links += [path for f in folders if (path := Path(parent, f)).is_symlink()]
                found += [Path(parent, name) for name in names]
        places = links
    return sorted(found)


def audio_stem(file: Path) -> Path | None:
    """Return the path of a recording without its ending, or None for another file."""
    is_audio = file.name.lower().endswith(AUDIO_ENDINGS) and not file.name.startswith(".")
    return file.with_suffix("") if is_audio else None


def transcript_stem(file: Path) -> Path | None:
    """Return the path of a transcript without its ending, or None for another file.

    For ``a.wav.txt`` it is ``a``.
    """
    endings = [ending for ending in TRANSCRIPT_ENDINGS if file.name.lower().endswith(ending)]
    if not endings or file.name.startswith("."):
        return None
    stem = file.with_name(file.name[: -len(max(endings, key=len))])
    return audio_stem(stem) or stem
