"""Writes what is generated in this repository: the settings' table, the wire's test vectors.

    make generated          # or python -m tests.support.generated

Tests hold the files to what this would write.
"""

from __future__ import annotations

from . import settings_reference, wire_vectors
from .sandbox import ROOT


def main() -> None:
    """Write them, and say what has changed."""
    wanted = {ROOT / "proto/vectors" / name: text for name, text in wire_vectors.files().items()}
    readme = ROOT / "sidecar/README.md"
    wanted[readme] = settings_reference.renewed(readme.read_text())
    for path, text in wanted.items():
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
