"""Untrusted chat templates, rendered in bounded time and memory, with their errors explained.

Transformers renders in a sandbox: a template can neither read files nor access Python. It can still
loop forever, or allocate all memory.
"""

import resource
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Environment, TemplateError

from higgs_pipe.errors import UserError
from higgs_pipe.higgs.prompts import RenderError

MAX_TEMPLATE_CHARS = 1_000_000  # the published one has 4,000
# For one conversation, which takes less than a millisecond and a megabyte.
RENDER_SECONDS = 10.0
RENDER_BYTES = 2**30
MAX_ADDED_CHARS = 1_000_000  # that the template writes around the texts
# A product of numbers may take hours within one operation, which no signal interrupts.
UNBOUNDED_OPERATORS = ("*", "**")
PAGE_BYTES = resource.getpagesize()
MEMORY = Path("/proc/self/statm")  # its first number: the pages of the process

# All that an expression of a template can raise; its memory and its time are bounded apart.
TEMPLATE_FAULTS = (
    TemplateError, ArithmeticError, AttributeError, LookupError, NameError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip


class _TooLongError(BaseException):
    """Raised by the alarm; no template can catch it."""


def check_template(template: str | Mapping[str, str] | None, name: str) -> None:
    """Check that a checkpoint's template, or each of its templates, can be rendered in bounds.

    Args:
        template: The source, or sources by their names; None without any.
        name: The checkpoint, for the message.

    Raises:
        UserError: The template is missing, invalid or too long, or it multiplies.
    """
    sources = template.values() if isinstance(template, Mapping) else [template or ""]
    for source in sources:
        if not source.strip():
            raise UserError(f"base_model {name!r} has no chat template; use a complete one.")
        if len(source) > MAX_TEMPLATE_CHARS:
            _refuse(f"has {len(source):,} characters; {MAX_TEMPLATE_CHARS:,} is the most")
        try:
            tokens = list(Environment().lex(source))
        except TemplateError as error:
            _refuse(f"is not one of Jinja ({error})")
        for line, kind, text in tokens:
            if kind == "operator" and text in UNBOUNDED_OPERATORS:
                _refuse(f"multiplies in line {line}, which no prompt needs")


def render(tokenizer: Any, messages: Sequence[Mapping[str, Any]], num_chars: int) -> str:
    """Return the text of a conversation.

    Args:
        tokenizer: The checkpoint's, with its template.
        messages: The conversation as the template reads it.
        num_chars: Number of characters of all texts in it.

    Raises:
        RenderError: The template refuses the conversation, or fails on it.
        UserError: It takes too much time or memory, or writes endless output.
    """
    try:
        with _bounded(RENDER_SECONDS, RENDER_BYTES):
            text: str = tokenizer.apply_chat_template(messages, tokenize=False)
    except TEMPLATE_FAULTS as error:
        kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
        raise RenderError(f"the chat template refuses the conversation: {kind}{error}") from None
    except _TooLongError:
        _refuse(f"takes more than {RENDER_SECONDS:.0f} seconds for one conversation")
    except MemoryError:
        _refuse(f"takes more than {RENDER_BYTES:,} bytes of memory for one conversation")
    if len(text) > num_chars + MAX_ADDED_CHARS:
        _refuse(f"writes {len(text):,} characters around texts of {num_chars:,}")
    return text


def _refuse(fact: str) -> NoReturn:
    raise UserError(
        f"the chat template of the base model {fact}; use the one that is published with it."
    ) from None


@contextmanager
def _bounded(seconds: float, num_bytes: int) -> Iterator[None]:
    """Bound the time and the additional memory of a block; in the main thread alone.

    Raises:
        _TooLongError: The time is over.
        MemoryError: The memory is used up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> NoReturn:
        raise _TooLongError

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        if MEMORY.exists():
            used = int(MEMORY.read_text().split()[0]) * PAGE_BYTES
            limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
            resource.setrlimit(resource.RLIMIT_AS, (min([used + num_bytes, *limits]), hard))
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, handler)
