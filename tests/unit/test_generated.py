"""What is generated is what would be generated now: else `make generated` was forgotten."""

from __future__ import annotations

from tests.support import settings_reference, wire_vectors
from tests.support.sandbox import ROOT

FORGOTTEN = "run `make generated` and commit what it writes"


def test_the_table_of_the_settings() -> None:
    readme = (ROOT / "sidecar/README.md").read_text()
    assert settings_reference.renewed(readme) == readme, FORGOTTEN


def test_the_wires_test_vectors() -> None:
    folder = ROOT / "proto/vectors"
    assert {path.name: path.read_text() for path in folder.iterdir()} == wire_vectors.files(), (
        f"the wire has changed, and clients in other languages would not follow. If that is meant, "
        f"{FORGOTTEN}"
    )
