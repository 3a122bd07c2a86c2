"""Names from outside become one safe component of a path, different ones different."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, strategies as st

from sidestep.proto.naming import safe_name


@given(st.text())
def test_any_name_is_one_safe_component(name: str) -> None:
    safe = safe_name(name)
    assert safe
    assert os.path.basename(safe) == safe
    assert safe not in (".", "..")
    assert not safe.startswith(".")
    assert all(character.isprintable() for character in safe)
    assert len(safe.encode()) <= 120


@given(st.text(), st.text())
def test_different_names_stay_different(a: str, b: str) -> None:
    assert (safe_name(a) == safe_name(b)) == (a == b)


@pytest.mark.parametrize("name", ["vit-b", "run 1", "lr=0.1,wd=0", "ümläut", "a.b_c+d@e"])
def test_harmless_names_stay_as_they_are(name: str) -> None:
    assert safe_name(name) == name


@pytest.mark.parametrize("name", ["../x", "a/b", "a\0b", "a\nb", "", " ", "..", "x" * 10_000, "🙂"])
def test_others_change(name: str) -> None:
    assert safe_name(name) != name
