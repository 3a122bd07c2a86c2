"""The benchmarks of growth and of trees emit what they say and see what is lost; no time here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sidestep.sidecar.rows.points import ScalarBlock
from tests.bench import growth, tree
from tests.bench.emitting import RUN, Spec, rows_of
from tests.support.archive import Home

TAGS = tuple(rows_of(Spec())[0])
ROW = list(rows_of(Spec())[0].values())
ONE = np.zeros(1, np.int64)


def block(prefix: str, steps: list[int], values: list[float] = ROW) -> ScalarBlock:
    return ScalarBlock(
        tuple(prefix + tag for tag in TAGS),
        np.array(steps),
        np.zeros(len(steps), np.int64),
        np.tile(np.array(values), (len(steps), 1)),
    )


def test_a_tree_sees_each_number_once(tmp_path: Path) -> None:
    reduced = tree.Case("mean", 4, 3, reduced=True)
    Home(tmp_path, RUN).write(block("", [0, 1, 2]))
    assert tree.check(tmp_path, reduced, [3] * 4) == 60
    with pytest.raises(tree.LostError, match="3 numbers, 3 steps, not 4"):
        tree.check(tmp_path, reduced, [4] * 4)
    with pytest.raises(tree.LostError, match="20 tags, not 80"):
        tree.check(tmp_path, tree.Case("all", 4, 3, reduced=False), [3] * 4)


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (block("", [2]), "4 numbers, 3 steps"),
        (block("", [3], [*ROW[:-1], 1e9]), "other values"),
        (ScalarBlock((f"{TAGS[0]}_ranks",), ONE, ONE, np.ones((1, 1))), "marked"),
    ],
)
def test_a_tree_sees_what_is_doubled_wrong_or_marked(
    tmp_path: Path, other: ScalarBlock, match: str
) -> None:
    Home(tmp_path, RUN).write(block("", [0, 1, 2]), other)
    with pytest.raises(tree.LostError, match=match):
        tree.check(tmp_path, tree.Case("mean", 4, 3, reduced=True), [3] * 4)


def test_cases_and_settings_give_every_rank_as_much() -> None:
    for case in tree.cases(16, 0.1):
        assert case.rows >= 2
        assert case.spec(4, 4).world_size == 16
    for setting in growth.settings_of(["ranks", "cadence", "seldom"], 0.1):
        assert setting.spec.reduced
        assert all(rows % setting.spec.clients == 0 for rows in setting.stages)


def test_a_tree_without_root_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.support.far_node._IP", None)
    assert tree.main(["--ranks", "4", "--quick"]) == 1
    assert "needs root and the command ip" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tree.main(["--ranks", "5"])


def test_a_tree_is_shown_by_the_million() -> None:
    cpu = {"trainers": 0.2, "nodes": 0.1, "forwarding": 0.1, "head": 0.1, "workers": 0.1}
    shown = tree.render([tree.Figures("all", 4, 2_000_000, 4.0, cpu, (60.0, 90.0), (50.0, 99.0))])
    assert "500,000" in shown
    assert "0.300" in shown
    assert "50.0, 99.0" in shown
