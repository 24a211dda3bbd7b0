"""Rendering of the HTML pages: one self-contained file each, without network requests."""

import base64
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import jinja2

from higgs_pipe import __version__
from higgs_pipe.reporting.measures import interval, signed, tone

NUM_NAMED = 20
"""Names in a sentence; what is left out is counted."""


def render_page(template: str, **content: Any) -> str:
    """Render a page with its style and script in it; equal content gives equal text.

    Args:
        template: File name of a template that extends ``skeleton.html.j2``.
        content: What the template reads; a missing name is an error.
    """
    environment = _environment()
    script = environment.get_template("script.js").render()
    return environment.get_template(template).render(
        version=__version__,
        style=environment.get_template("style.css").render(),
        script=script,
        script_hash=_csp_hash(f"\n{script}"),
        **content,
    )


def _first_few(parts: Sequence[str]) -> str:
    """``a, b and 3 more``."""
    text = ", ".join(parts[:NUM_NAMED])
    num_more = len(parts) - NUM_NAMED
    return text if num_more <= 0 else f"{text} and {num_more:,} more"


def _csp_hash(script: str) -> str:
    """Return the hash by which the page's content security policy allows this script only."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


@functools.cache  # keeps compiled templates
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("higgs_pipe", "templates/report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "count": lambda number: f"{number:,.0f}",
        "first_few": _first_few,
        "hours": lambda hours: f"{hours:,.3f}",
        "interval": interval,
        "nats": lambda nats: f"{nats:.3f}",
        "percent": lambda share: f"{100 * share:.1f} %",
        "seconds": lambda seconds: f"{seconds:,.2f}",
        "signed": signed,
        "tone": tone,
    }
    return environment
