"""Speakers and languages by amount of audio."""

from collections.abc import Mapping

from higgs_pipe.data.clips.results import NamedShare
from higgs_pipe.reporting.pages import NUM_NAMED


def largest(shares: Mapping[str, NamedShare]) -> dict[str, NamedShare]:
    """Return the speakers or languages with the most audio, then all the others as one."""
    names = sorted(shares, key=lambda name: (-shares[name].hours, name))
    found = {name: shares[name] for name in names[:NUM_NAMED]}
    if others := [shares[name] for name in names[NUM_NAMED:]]:
        keys = NamedShare.model_fields
        together = {key: sum(getattr(other, key) for other in others) for key in keys}
        found[f"{len(others):,} others"] = NamedShare(**together)
    return found
