"""Resolution of a path as written to the file that it means."""

import unicodedata
from pathlib import Path


def meant_path(root: Path, written: str) -> Path:
    """Return the path below a root, in the spelling that exists.

    A name with accents may be composed or decomposed, in the manifest and on the disk; a manifest
    from Windows has backslashes. If no spelling exists, the path stays as written.
    """
    path = root / written
    if written.isascii() and "\\" not in written:
        return path
    plain = written.replace("\\", "/")
    spellings = (
        unicodedata.normalize(form, text) for text in (written, plain) for form in ("NFC", "NFD")
    )
    for spelling in (written, plain, *spellings):
        try:
            if (root / spelling).exists():
                return root / spelling
        except (OSError, ValueError):
            return path
    return _by_parts(root / plain) or path


def _by_parts(path: Path) -> Path | None:
    """Return an existing path whose parts equal those of ``path`` in one of the two forms each."""
    found = Path(path.anchor)
    for part in path.parts[1 if path.anchor else 0 :]:
        forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        existing = next((found / form for form in forms if (found / form).exists()), None)
        if existing is None:
            return None
        found = existing
    return found
