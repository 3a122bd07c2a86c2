"""Names from outside, made safe as one component of a path."""

from __future__ import annotations

import hashlib
import re
from typing import Final

_MAX_BYTES: Final = 120
_UNSAFE: Final = re.compile(r"[^\w .+=@,-]", re.UNICODE)


def safe_name(name: str) -> str:
    """A file name for `name`: itself when it is harmless, else a readable form with a digest.

    Different names give different file names, as far as a digest of 8 digits goes. The result
    never begins with a dot, holds no separator or control character, and has at most 120 bytes.
    """
    harmless = _UNSAFE.sub("_", name).strip(" .")
    if name and harmless == name and len(name.encode()) <= _MAX_BYTES:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    short = harmless.encode("utf-8", "ignore")[: _MAX_BYTES - 9].decode("utf-8", "ignore")
    return f"{short.strip(' .') or 'run'}-{digest}"
