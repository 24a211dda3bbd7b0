"""A hash of ``metrics.jsonl`` in its last line, which the report checks."""

import json

from higgs_pipe.data.hashing import sha256_of_bytes

LINES_HASH = "lines_sha256"


def with_hash(lines: str) -> str:
    """Return the lines of a ``metrics.jsonl`` with a hash of them all in the last one.

    An existing hash is replaced; text that is not JSON Lines gets none.
    """
    try:
        before, last = lines.removesuffix("\n").rsplit("\n", 1)
        values = {key: value for key, value in json.loads(last).items() if key != LINES_HASH}
    except (ValueError, AttributeError):
        return ""
    text = f"{before}\n{json.dumps(values)}\n"
    digest = sha256_of_bytes(text.encode())
    return f"{before}\n{json.dumps({**values, LINES_HASH: digest})}\n"
