"""`sidestep replay`: recorded numbers become the observations that they were, and ring again."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sidestep.sidecar.alarms import TracePoint, observations
from sidestep.sidecar.cli.common import CommandError
from sidestep.sidecar.cli.replay import replay
from sidestep.sidecar.cli.trace_files import read_points

WELL = {"n_images": 32.0, "n_dims": 64.0, "nonfinite": 0.0, "variance_share": 0.5}


def points(shares: Sequence[float], tag: str = "train/context") -> list[TracePoint]:
    """An observation for each variance share, a second and ten steps apart."""
    return [
        TracePoint("run", f"{tag}_{suffix}", 10 * number, 1.7e9 + number, value)
        for number, share in enumerate(shares)
        for suffix, value in {**WELL, "variance_share": share, "std": 1.0}.items()
    ]


FALL = points([0.5] * 25 + [1e-4] * 3)


def csv_of(found: Sequence[TracePoint]) -> str:
    rows = [f'run,"{p.tag}",{p.step},{p.wall_time_s!r},{p.value!r}\n' for p in found]
    return "run,tag,step,wall_time,value\n" + "".join(rows)


def json_of(found: Sequence[TracePoint]) -> str:
    return "".join(
        json.dumps(
            {
                "run": p.run,
                "tag": p.tag,
                "step": p.step,
                "wall_time": p.wall_time_s,
                "value": p.value,
            }
        )
        + "\n"
        for p in found
    )


def replayed(*arguments: str) -> list[dict[str, object]]:
    import typer

    app = typer.Typer()
    app.command()(replay)
    done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_observations_come_back_from_numbers_in_any_order() -> None:
    others = [
        TracePoint("run", "train_loss", 10, 1.7e9 + 1, 3.0),
        TracePoint("run", "sidestep/alarm/train/context", 10, 1.7e9 + 1, 0.0),
        TracePoint("run", "weights/layer_std", 10, 1.7e9 + 1, 0.0),
    ]
    mixed = [*FALL, *others]
    random.Random(0).shuffle(mixed)
    found = list(observations(mixed))
    assert [traced.observation.step for traced in found] == list(range(0, 280, 10))
    assert {traced.tag for traced in found} == {"train/context"}
    assert found == list(observations(FALL))
    assert found[-1].observation.variance_share == 1e-4


def test_a_step_that_comes_twice_is_two_observations() -> None:
    again = [p._replace(wall_time_s=p.wall_time_s + 1000) for p in FALL[:10]]
    steps = [traced.observation.step for traced in observations([*again, *FALL])]
    assert steps == [*range(0, 280, 10), 0, 10]


@pytest.mark.parametrize("form", [csv_of, json_of])
def test_a_file_rings_again(tmp_path: Path, form: object) -> None:
    file = tmp_path / "trace"
    file.write_text((csv_of if form is csv_of else json_of)(FALL))
    said = replayed(str(file))
    assert [(one["event"], one["state"], one.get("step")) for one in said] == [
        ("transition", "WATCH", 250),
        ("transition", "COLLAPSED", 260),
        ("state", "COLLAPSED", None),
    ]
    assert said[1]["since_step"] == 250


def test_other_rules(tmp_path: Path) -> None:
    file, rules = tmp_path / "trace.csv", tmp_path / "rules.yaml"
    file.write_text(csv_of(FALL))
    rules.write_text("sidecar: {alarms: {complete_critical: 1.0e-5}}")
    said = replayed(str(file), "--rules", str(rules))
    assert [one["state"] for one in said] == ["WATCH", "WARN", "WARN"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n", "no head with the columns run, tag, step, wall_time, value"),
        ("run,tag,step,wall_time,value\nr,t,x,1,1\n", "row 2: expected run"),
        ('{"run": "r"}\n', "row 1: expected run"),
        ('{"run": "r"\n', "row 1 is no JSON"),
        ("PAR1\0", "is Parquet"),
        ("", "no head"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "trace"
    file.write_text(text)
    with pytest.raises(CommandError, match=says):
        list(read_points(str(file)))


def test_numbers_without_a_representation_are_no_trace(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    file.write_text(csv_of([TracePoint("run", "train_loss", 1, 1.0, 1.0)]))
    with pytest.raises(CommandError, match="no statistics of a representation"):
        replay(str(file))
