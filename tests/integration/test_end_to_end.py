"""One number's whole way: from `emit` through the daemon into TensorBoard's own reader."""

from __future__ import annotations

import io
import logging
import math
import re
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sidestep import client
from sidestep.proto import SidestepError
from tests.support.fixtures import Connect
from tests.support.oracle import (
    OWN,
    assert_balanced,
    assert_exactly,
    bits,
    points,
    read_scalars,
    read_values,
)
from tests.support.sandbox import Sandbox

pytestmark = pytest.mark.timeout(120)

NUMBERS: dict[str, Any] = {
    "zero": 0.0,
    "minus_zero": -0.0,
    "nan": math.nan,
    "inf": math.inf,
    "minus_inf": -math.inf,
    "denormal64": 5e-324,
    "denormal32": 1e-45,
    "bf16_variance": 1e-8,
    "huge": 1.7976931348623157e308,
    "over_float32": 1e39,
    "third": 1 / 3,
    "int": 7,
    "big_int": 2**53 + 1,
    "minus_int": -(10**15),
    "true": True,
    "numpy_float16": np.float16(0.1),
    "numpy_float32": np.float32(0.1),
    "numpy_int8": np.int8(-128),
    "numpy_bool": np.bool_(True),
    "numpy_0d": np.array(2.5),
    "tensor": torch.tensor(0.1),
    "tensor_double": torch.tensor(0.1, dtype=torch.float64),
    "tensor_bfloat16": torch.tensor(1e-8, dtype=torch.bfloat16),
    "tensor_int": torch.tensor(-3),
    "tensor_bool": torch.tensor(True),
    "tensor_with_gradient": torch.tensor(1.25, requires_grad=True),
}


def plain(value: Any) -> float:
    """A number as a Python float."""
    return float(value.detach() if isinstance(value, torch.Tensor) else value)


def finished(sandbox: Sandbox, made: client.Client) -> None:
    """Finish, and wait until all is written."""
    assert made.finish(30)
    assert_balanced(asdict(made.stats()))
    sandbox.drain()


def test_every_kind_of_number_to_float32(sandbox: Sandbox, connect: Connect) -> None:
    sandbox.serve()
    made = connect("numbers")
    made.emit(NUMBERS, step=1)
    finished(sandbox, made)
    assert made.stats().rejected == 0
    expected = points((tag, 1, plain(value)) for tag, value in NUMBERS.items())
    assert_exactly(read_scalars(sandbox.event_files("numbers")), expected)


def test_steps_that_repeat_turn_back_and_are_huge(sandbox: Sandbox, connect: Connect) -> None:
    sandbox.serve()
    made = connect("steps")
    steps = [0, 1, 1, 1, 5, 3, -7, 2**62, -(2**63), 2**63 - 1, 4, 0]
    for number, step in enumerate(steps):
        made.emit({"a": number, "b": -1.0 * number}, step=step)
    finished(sandbox, made)
    expected = points(
        (tag, step, sign * number)
        for number, step in enumerate(steps)
        for tag, sign in (("a", 1.0), ("b", -1.0))
    )
    files = sandbox.event_files("steps")
    assert_exactly(read_scalars(files), expected)
    assert [step for step, _, v in read_values(files) if v.tag == "a"] == steps


def test_step_none_counts_on_and_wall_time_is_kept(sandbox: Sandbox, connect: Connect) -> None:
    sandbox.serve()
    made = connect("counted")
    before = time.time()
    made.emit({"a": 0.5})
    made.emit({"a": 0.5}, step=40)
    made.emit({"a": 0.5}, wall_time=1_700_000_000.25)
    finished(sandbox, made)
    found = [v for v in read_values(sandbox.event_files("counted")) if v[2].tag == "a"]
    assert [step for step, _, _ in found] == [0, 40, 41]
    assert before <= found[0][1] <= time.time()
    assert found[2][1] == pytest.approx(1_700_000_000.25, abs=1e-6)


def test_tags_come_as_they_are(sandbox: Sandbox, connect: Connect) -> None:
    sandbox.serve()
    made = connect("tags")
    tags = [
        "train/loss",
        "a b",
        "Größe/µ",
        "🙂",
        "x" * 1000,
        "a/../b",
        "with\nnewline",
        "train/loss ",
    ]
    made.emit({tag: float(k) for k, tag in enumerate(tags)}, step=3)
    made.emit({tags[0]: 9.0}, step=4)
    finished(sandbox, made)
    expected = points([*((tag, 3, float(k)) for k, tag in enumerate(tags)), (tags[0], 4, 9.0)])
    assert_exactly(read_scalars(sandbox.event_files("tags")), expected)


def test_numbers_are_those_of_the_moment_of_emit(sandbox: Sandbox, connect: Connect) -> None:
    sandbox.serve()
    made = connect("moment")
    number, weights = torch.tensor(1.0), torch.zeros(10)
    made.emit({"n": number, "w": client.Histogram(weights)}, step=0)
    number.fill_(5.0)
    weights.fill_(9.0)
    finished(sandbox, made)
    values = read_values(sandbox.event_files("moment"))
    assert_exactly(read_scalars(sandbox.event_files("moment")), points([("n", 0, 1.0)]))
    (histogram,) = [v.histo for _, _, v in values if v.tag == "w"]
    assert (histogram.num, histogram.max) == (10, 0.0)


def test_histogram_image_and_text(sandbox: Sandbox, connect: Connect) -> None:
    sandbox.serve()
    made = connect("values")
    weights = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    pixels = torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(2))
    made.emit(
        {
            "weights": client.Histogram(weights),
            "big": client.Histogram(np.arange(1_000_000, dtype=np.float32)),
            "picture": client.Image(pixels, caption="a caption"),
            "note": client.Text("**bold** 🙂"),
            "beside": 0.25,
        },
        step=12,
    )
    finished(sandbox, made)
    files = sandbox.event_files("values")
    assert_exactly(read_scalars(files), points([("beside", 12, 0.25)]))
    found = {v.tag: (step, v) for step, _, v in read_values(files)}
    assert {step for tag, (step, _) in found.items() if not tag.startswith(OWN)} == {12}
    histogram = found["weights"][1].histo
    assert histogram.num == 1000
    assert histogram.min == pytest.approx(float(weights.min()))
    assert sum(histogram.bucket) == 1000
    assert sum(found["big"][1].histo.bucket) == 1_000_000
    picture = found["picture"][1].image
    assert (picture.height, picture.width, picture.colorspace) == (8, 12, 3)
    decoded = np.asarray(Image.open(io.BytesIO(picture.encoded_image_string)))
    wanted = (pixels.permute(1, 2, 0).numpy() * np.float32(255)).astype(np.uint8)
    assert np.array_equal(decoded, wanted)
    assert found["note/text_summary"][1].tensor.string_val[0].decode() == "**bold** 🙂"


def test_representation_becomes_its_statistics(sandbox: Sandbox, connect: Connect) -> None:
    sandbox.serve()
    made = connect("representations")
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randn(64, 16, 24, generator=generator) * (k + 1) + 2 for k in range(3)]
    for step, batch in enumerate(batches):
        value = client.Representation(batch, spectrum_every=2)
        made.emit({"train/context": value}, step=step)
    finished(sandbox, made)
    found = Counter(
        (tag, step) for tag, step, _ in read_scalars(sandbox.event_files("representations"))
    )
    always = [(f"train/context_{name}", step) for name in ("std", "norm") for step in range(3)]
    spectra = [(f"train/context_{name}", step) for name in ("rank", "pr") for step in (0, 2)]
    names = {f"train/context_{name}" for name in ("std", "norm", "rank", "pr")}
    assert Counter({key: n for key, n in found.items() if key[0] in names}) == Counter(
        [*always, *spectra]
    )

    values = {
        (v.tag, step): v.simple_value
        for step, _, v in read_values(sandbox.event_files("representations"))
    }
    for step, batch in enumerate(batches):
        rows = batch.reshape(-1, 24).double().numpy()
        assert values["train/context_std", step] == pytest.approx(
            rows.std(0, ddof=1).mean(), rel=1e-5
        )
        norm = np.linalg.norm(rows, axis=1).mean()
        assert values["train/context_norm", step] == pytest.approx(norm, rel=1e-5)
    rows = batches[0].reshape(-1, 24).double().numpy()
    sigma = np.linalg.svd(rows, compute_uv=False)
    p = sigma / sigma.sum() + 1e-7
    assert values["train/context_rank", 0] == pytest.approx(
        np.exp(-(p * np.log(p)).sum()), rel=1e-4
    )
    assert 20 < values["train/context_pr", 0] < 26


def test_bad_values_are_counted_and_harm_nobody_else(
    sandbox: Sandbox, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.serve()
    made = connect("bad")
    bad: dict[Any, Any] = {
        "text": "0.5",
        "none": None,
        "object": object(),
        "list": [1.0],
        "array": np.zeros(3),
        "tensor": torch.zeros(2, 2),
        "complex": 1j,
        "huge_int": 10**400,
        "": 1.0,
        7: 1.0,
        "x" * 2000: 1.0,
        "empty_histogram": client.Histogram([]),
        "no_image": client.Image(np.zeros((5, 5, 5, 5))),
        "no_text": client.Text(b"bytes"),  # type: ignore[arg-type]
        "one_row": client.Representation(torch.zeros(1, 4)),
    }
    with caplog.at_level(logging.WARNING, logger="sidestep"):
        for step in range(3):
            made.emit({**bad, "good": float(step)}, step=step)
    assert made.stats().rejected == 3 * len(bad)
    assert len(caplog.records) == len(bad), "each is logged once"
    made.emit([("a", 1.0)], step=5)  # type: ignore[arg-type]
    made.emit({"good": 1.0}, step="5")  # type: ignore[arg-type]
    made.emit({"good": 1.0}, step=2**63)
    made.emit({"good": 1.0}, step=5, wall_time="now")  # type: ignore[arg-type]
    made.emit({"good": 1.0}, step=5, reduce="median")  # type: ignore[arg-type]
    assert made.stats().rejected == 3 * len(bad) + 5
    finished(sandbox, made)
    expected = points(("good", step, float(step)) for step in range(3))
    assert_exactly(read_scalars(sandbox.event_files("bad")), expected)
    status = sandbox.run_status("bad")
    assert status
    assert status["records"]["rejected"] == made.stats().rejected


def test_strict_raises_after_the_good_values_are_taken(sandbox: Sandbox, connect: Connect) -> None:
    sandbox.serve()
    made = connect("strict", strict=True)
    with pytest.raises(client.InvalidValueError, match=r"'bad'.*str is no value"):
        made.emit({"bad": "x", "good": 1.5}, step=0)
    with pytest.raises(TypeError, match="unexpected keyword"):
        made.emit({"good": 1.0}, epoch=3)  # type: ignore[call-arg]
    finished(sandbox, made)
    assert_exactly(read_scalars(sandbox.event_files("strict")), points([("good", 0, 1.5)]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"run": 7}, "run must be a str"),
        ({"endpoint": "localhost:80"}, "tcp://HOST:PORT"),
        ({"rank": -1}, "rank"),
        ({"rank": 2, "world_size": 2}, "rank 2 of a world of 2"),
        ({"ranks": "some"}, "zero, all"),
        ({"on_full": "wait"}, "drop, block"),
        ({"outbox_bytes": 10}, "outbox_bytes"),
        ({"config": [1]}, "config must be a mapping"),
        ({"tags": "one"}, "list of str"),
        ({"wandb": "yes"}, "wandb must be"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
def test_bad_arguments_of_connect(connect: Connect, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(client.ConfigurationError, match=re.escape(words)):
        connect(**arguments)


def test_unknown_argument_of_connect(connect: Connect) -> None:
    with pytest.raises(TypeError, match="logdir"):
        connect("a", logdir="x")


def test_connect_takes_no_time_without_a_daemon(sandbox: Sandbox, connect: Connect) -> None:
    began = time.perf_counter()
    made = connect("quick", log_dir="/proc/nobody/can/write/here")
    assert time.perf_counter() - began < 1.0
    made.emit({"a": 1.0}, step=0)
    assert not made.flush(0.1)
    assert not made.finish(0.1)
    assert made.stats().held == 1


def test_socket_path_too_long(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    long = str(sandbox.root / ("x" * 100))
    monkeypatch.setenv("SIDESTEP_RUNTIME_DIR", long)
    with pytest.raises(SidestepError, match=r"takes 107.*shorter path, for example '/tmp/"):
        client.connect("long")
    done = sandbox.cli("start", SIDESTEP_RUNTIME_DIR=long)
    assert done.returncode == 1
    assert "107" in done.stderr
    assert "SIDESTEP_RUNTIME_DIR" in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path(long).exists()


def test_disabled_is_a_no_op(
    sandbox: Sandbox, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIDESTEP_DISABLED", "1")
    made = connect("disabled", autostart=True)
    made.emit({"a": object()}, step="x")  # type: ignore[arg-type]
    assert made.finish()
    assert made.stats().emitted == 0
    assert not sandbox.runtime.exists()


def test_two_runs_and_two_clients_of_one(sandbox: Sandbox, connect: Connect) -> None:
    sandbox.serve()
    one, other, same = connect("one"), connect("other"), connect("one")
    for step in range(100):
        one.emit({"a": step, "b": 1}, step=step)
        other.emit({"a": -step}, step=step)
        same.emit({"b": step + 0.5, "c": step}, step=step)
    for made in (one, other, same):
        assert made.finish(30)
    sandbox.drain()
    expected = points(
        point
        for k in range(100)
        for point in [("a", k, float(k)), ("b", k, 1.0), ("b", k, k + 0.5), ("c", k, float(k))]
    )
    assert_exactly(read_scalars(sandbox.event_files("one")), expected)
    assert_exactly(
        read_scalars(sandbox.event_files("other")), points(("a", k, float(-k)) for k in range(100))
    )


def test_run_continued_later(sandbox: Sandbox, connect: Connect) -> None:
    """Another trainer of the same run, after everything was closed: the curve goes on."""
    daemon = sandbox.serve()
    expected: list[tuple[str, int, float]] = []
    for start in (0, 50, 100):
        made = connect("again")
        for step in range(start, start + 50):
            made.emit({"a": step / 3}, step=step)
            expected.append(("a", step, step / 3))
        finished(sandbox, made)
        if start == 50:
            assert daemon.terminate() == 0
            daemon = sandbox.serve()
    assert_exactly(read_scalars(sandbox.event_files("again")), points(expected))


def test_bits_tell_what_equality_does_not() -> None:
    assert bits(0.0) != bits(-0.0)
    assert bits(math.nan) == bits(-math.nan)
    assert bits(1e39) == bits(math.inf)
