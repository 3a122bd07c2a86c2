"""A stand-in for NVIDIA's driver library, compiled by the test and found through the loader's path.

    nvml = FakeNvml.build(tmp_path)
    nvml.set("gpus 2", "gpu1.power_mw 250000")
    subprocess.run(..., env=nvml.env())
    nvml.set("hang nvmlDeviceGetPowerUsage")   # in running processes too

What can be set, `fake_nvml.c` says.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_suffix(".c")
SONAME = "libnvidia-ml.so.1"


@dataclass(frozen=True)
class FakeNvml:
    """The library in `folder`, and the file that tells it what to answer."""

    folder: Path

    @classmethod
    def build(cls, folder: Path, without: tuple[str, ...] = ()) -> FakeNvml:
        """Compile the library into `folder`, lacking the functions `without`; one GPU at first."""
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            pytest.skip("no C compiler to build the fake NVML with")
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
            + [f"-D{name}=absent_{name}" for name in without]
            + ["-o", str(folder / SONAME), str(SOURCE)],
            check=True,
            timeout=60,
        )
        fake = cls(folder)
        fake.set()
        return fake

    @property
    def library(self) -> Path:
        return self.folder / SONAME

    @property
    def control(self) -> Path:
        return self.folder / "control"

    def set(self, *lines: str) -> None:
        """Replace all that was set before, at once for all who read it."""
        draft = self.control.with_suffix(".draft")
        draft.write_text("".join(f"{line}\n" for line in lines))
        draft.replace(self.control)

    def vanish(self) -> None:
        """Take the library away from those who have not loaded it yet."""
        # What is left is no library, and ends the loader's search before it finds a real driver's.
        # It is a new file: a process that has the old one mapped keeps it.
        self.library.unlink()
        self.library.touch()

    def env(self) -> dict[str, str]:
        """This process's environment, with the fake in the place of any real driver."""
        path = os.environ.get("LD_LIBRARY_PATH")
        return {
            **os.environ,
            "LD_LIBRARY_PATH": f"{self.folder}:{path}" if path else str(self.folder),
            "FAKE_NVML_CONTROL": str(self.control),
        }
