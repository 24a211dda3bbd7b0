"""A check that the Hub responds: its client alone would wait forever for a silent one."""

import ssl
import urllib.error
import urllib.request
from functools import cache

from huggingface_hub import constants

TIMEOUT_SECONDS = 5.0


@cache
def hub_answers() -> bool:
    """Return whether the Hub answers within seconds; asked once per process."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # its client may know the certificate
    except OSError:
        return False
    return True
