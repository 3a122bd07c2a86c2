"""NaN, infinities, the tiny and the huge come out as they went in, to the bit."""

from __future__ import annotations

import math
import struct
from collections import Counter

import pytest

from sidestep import client
from sidestep.sidecar.archive import reader
from tests.support.fixtures import Connect
from tests.support.oracle import OWN, assert_exactly, points, read_scalars
from tests.support.sandbox import Sandbox, parse_lines

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

MAX = 1.7976931348623157e308
MAX_FLOAT32 = 3.4028234663852886e38
HARD = {
    "nan": math.nan,
    "plus_infinity": math.inf,
    "minus_infinity": -math.inf,
    "minus_zero": -0.0,
    "largest": MAX,
    "smallest": -MAX,
    "largest_float32": MAX_FLOAT32,
    "next_after_float32": math.nextafter(MAX_FLOAT32, math.inf),
    "rounds_to_infinity": 3.5e38,
    "least_normal": 2.2250738585072014e-308,
    "denormal": 5e-324,
    "least_normal_float32": 1.1754943508222875e-38,
    "denormal_float32": 1e-45,
    "rounds_to_denormal_float32": 7e-46,
    "rounds_to_zero": 7e-47,
    "variance": 1e-8,
    "third": 1 / 3,
    "above_2_to_53": 2.0**53 + 2,
}
STEPS = (0, -1, 2**62)


def bits64(value: float) -> bytes:
    """The bits of a float64; all NaN are one."""
    return struct.pack("<d", math.nan if math.isnan(value) else value)


def test_hard_numbers_arrive_to_the_bit(sandbox: Sandbox, connect: Connect) -> None:
    sandbox.serve()
    made = connect("hard")
    expected: list[tuple[str, int, float]] = []
    for step in STEPS:
        made.emit(HARD, step=step)
        expected += [(tag, step, value) for tag, value in HARD.items()]
        # As 0-d tensors: those take another way, and a narrow one.
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            name = str(dtype).removeprefix("torch.")
            for tag, value in HARD.items():
                tensor = torch.tensor(value, dtype=torch.float64).to(dtype)
                made.emit({f"{name}/{tag}": tensor}, step=step)
                expected.append((f"{name}/{tag}", step, float(tensor.double())))
    variance = torch.full((64,), 1e-4, dtype=torch.bfloat16).square().mean()
    assert variance.dtype == torch.bfloat16
    assert 0 < float(variance) < 6e-8, "below the least float16"
    made.emit({"collapse/variance": variance}, step=1)
    expected.append(("collapse/variance", 1, float(variance)))
    spread = torch.randn(64, 16, generator=torch.Generator().manual_seed(1)) * 1e-4
    made.emit({"tiny": client.Representation(spread.bfloat16())}, step=1)
    stats = made.stats()
    assert (stats.rejected, stats.dropped) == (0, 0)
    assert made.finish(60)
    sandbox.drain()

    found = read_scalars(sandbox.event_files("hard"))
    derived = {tag: bits for tag, _, bits in found if tag.startswith("tiny")}
    (std,) = struct.unpack("<f", struct.pack("<I", derived["tiny_std"]))
    assert std == pytest.approx(1e-4, rel=0.1), "a variance of 1e-8 in bfloat16"
    assert_exactly(
        Counter({p: n for p, n in found.items() if p[0] not in derived}), points(expected)
    )
    wanted = Counter((tag, step, bits64(value)) for tag, step, value in expected)
    assert archived(sandbox) == wanted, "the archive's float64s are others"
    assert exported(sandbox) == wanted, "the export's float64s are others"


def archived(sandbox: Sandbox) -> Counter[tuple[str, int, bytes]]:
    run = reader.find_run(sandbox.logs, "hard")
    assert run is not None
    return Counter(
        (point.tag, point.step, bits64(point.value))
        for point in run.points()
        if not point.tag.startswith((*OWN, "tiny"))
    )


def exported(sandbox: Sandbox) -> Counter[tuple[str, int, bytes]]:
    done = sandbox.cli("export", "hard", "--format", "jsonl")
    assert done.returncode == 0, done.stderr
    return Counter(
        (line["tag"], line["step"], bits64(float(line["value"])))
        for line in parse_lines(done.stdout)
        if not line["tag"].startswith((*OWN, "tiny"))
    )
