"""deploy/container and deploy/kubernetes: valid by their own tools, and their layout works."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.containers import Container, need_namespaces
from tests.support.event_reader import scalars
from tests.support.sandbox import ROOT
from tests.support.waiting import wait_until

DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "container" / "Dockerfile"
COMPOSE = DEPLOY / "container" / "compose.yaml"
MANIFEST = DEPLOY / "kubernetes" / "training.yaml"
OLDEST_KUBERNETES = "1.29"


def tool(name: str) -> str:
    """A program that the development packages bring, beside the interpreter."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        pytest.skip(f"{name} is not installed: it is among the development packages")
    return str(path)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


# --- by their own tools ---------------------------------------------------------------------------


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = run(tool("hadolint"), "--failure-threshold=ignore", str(DOCKERFILE))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_is_built_from_what_is_there() -> None:
    text = DOCKERFILE.read_text()
    for line in re.findall(r"(?m)^COPY (?!--)(.+)$", text):
        *sources, _target = line.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert f"!{source.rstrip('/')}" in re.sub(
                r"(?m)/sidestep$", "", (DEPLOY / "container/Dockerfile.dockerignore").read_text()
            ), f"{source} is not in the build's context"
    user = re.findall(r"(?m)^USER (.+)$", text)[-1]
    assert user.split(":")[0].isdecimal(), "Kubernetes cannot see that a name is not root"
    assert int(user.split(":")[0]) > 0


def test_the_compose_file_is_one() -> None:
    compose_spec = pytest.importorskip("compose_spec")
    whole = yaml.safe_load(COMPOSE.read_text())
    compose = compose_spec.PyCompose.from_yaml(yaml.safe_dump(whole))  # with `<<` resolved
    compose.validate()
    assert set(compose.service_names()) == {"sidecar", "trainer"}
    broken = {**whole, "services": {"x": {"image": "x", "depend_on": ["y"]}}}
    with pytest.raises(ValueError, match="depend_on"):
        compose_spec.PyCompose.from_yaml(yaml.safe_dump(broken))


@pytest.mark.parametrize("version", [OLDEST_KUBERNETES, None])
def test_kubernetes_takes_the_manifest(version: str | None) -> None:
    which = ["-k", version] if version else []
    done = run(tool("kubernetes-validate"), *which, "--strict", str(MANIFEST))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count(" passed ") == 2


def test_kubernetes_waits_as_long_as_the_daemon_may_take() -> None:
    pod = manifest_pod()
    sidecar = pod["initContainers"][0]
    assert sidecar["restartPolicy"] == "Always", "or it is no sidecar"
    drain = sidecar["lifecycle"]["preStop"]["exec"]["command"]
    assert pod["terminationGracePeriodSeconds"] >= int(drain[-1]) + 60 + 20
    stop = yaml.safe_load(COMPOSE.read_text())["services"]["sidecar"]["stop_grace_period"]
    assert int(stop.removesuffix("s")) >= 60 + 20


# --- the layout, with namespaces ------------------------------------------------------------------


@dataclass
class Part:
    """A container as a file describes it."""

    command: list[str]
    user: int
    env: dict[str, str]
    mounts: dict[str, str | Path]


@dataclass
class Layout:
    """Two containers and the folders that they share; made as their engine would make them."""

    folder: Path
    undo: ExitStack = field(default_factory=ExitStack)

    def tmpfs(self, name: str, options: str) -> Path:
        path = self.folder / name
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], check=True)
        self.undo.callback(subprocess.run, ["umount", "-l", str(path)], check=True)
        return path

    def disk(self, name: str, mode: int, uid: int, gid: int) -> Path:
        path = self.folder / name
        path.mkdir(parents=True, exist_ok=True)
        shutil.chown(path, uid, gid)
        path.chmod(mode)
        return path


def image_env() -> dict[str, str]:
    """ENV of the image."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    (line,) = re.findall(r"(?m)^ENV (.+)$", text)
    return dict(word.split("=", 1) for word in line.split())


def image_command() -> list[str]:
    words = dict(re.findall(r"(?m)^(ENTRYPOINT|CMD) (\[.+\])$", DOCKERFILE.read_text()))
    return [*yaml.safe_load(words["ENTRYPOINT"]), *yaml.safe_load(words["CMD"])]


def of_compose(layout: Layout) -> tuple[Part, Part]:
    whole = yaml.safe_load(COMPOSE.read_text())
    volumes: dict[str, Path] = {}
    for name, volume in whole["volumes"].items():
        options = volume.get("driver_opts")
        # An engine gives a new volume the owner that the folder has in the image.
        volumes[name] = (
            layout.tmpfs(name, options["o"]) if options else layout.disk(name, 0o755, 1000, 1000)
        )
    parts = []
    for service in (whole["services"]["sidecar"], whole["services"]["trainer"]):
        assert service["read_only"]
        pairs = [volume.split(":") for volume in service["volumes"]]
        mounts: dict[str, str | Path] = {to: volumes[name] for name, to in pairs}
        env = image_env() if "build" in service else {}
        env |= service.get("environment", {})
        command = service.get("command") or image_command()
        parts.append(Part(command, int(service["user"].split(":")[0]), env, mounts))
    return parts[0], parts[1]


def manifest_pod() -> dict[str, Any]:
    documents = list(yaml.safe_load_all(MANIFEST.read_text()))
    return next(d for d in documents if d["kind"] == "Job")["spec"]["template"]["spec"]


def of_kubernetes(layout: Layout) -> tuple[Part, Part]:
    pod = manifest_pod()
    group = pod["securityContext"]["fsGroup"]
    volumes: dict[str, Path] = {}
    for volume in pod["volumes"]:
        # The kubelet leaves them to root, writable for the group fsGroup, which is inherited.
        memory = volume.get("emptyDir", {}).get("medium") == "Memory"
        name = volume["name"]
        volumes[name] = (
            layout.tmpfs(name, f"size=512m,uid=0,gid={group},mode=2777")
            if memory
            else layout.disk(name, 0o2775, 0, group)
        )
    parts = []
    for part in (pod["initContainers"][0], pod["containers"][0]):
        assert part["securityContext"]["readOnlyRootFilesystem"]
        mounts: dict[str, str | Path] = {}
        for mount in part["volumeMounts"]:
            inside = Path(mount["name"]) / mount.get("subPath", "")
            path = layout.disk(str(inside), 0o2775, 0, group) if "subPath" in mount else None
            mounts[mount["mountPath"]] = path or volumes[mount["name"]]
        env = image_env() if "args" in part else {}
        env |= {one["name"]: one["value"] for one in part["env"]}
        command = part.get("command") or [image_command()[0], *part["args"]]
        parts.append(Part(command, pod["securityContext"]["runAsUser"], env, mounts))
    return parts[0], parts[1]


TRAINER = """
import time
from sidestep import client
made = client.connect("contained", outbox_bytes=8 << 20)
for step in range(3000):
    client.emit({"train/loss": 1.0 / (step + 1)}, step=step)
print("emitted", made.stats().dropped, flush=True)
time.sleep(600)
"""


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    need_namespaces()
    tmp_path.chmod(0o755)
    made = Layout(tmp_path)
    with made.undo:
        yield made


@pytest.mark.parametrize("how", [pytest.param(of_compose, marks=pytest.mark.slow), of_kubernetes])
def test_a_killed_trainer_in_another_container_loses_nothing(how: Any, layout: Layout) -> None:
    sidecar, trainer = how(layout)
    assert trainer.user == sidecar.user, "what lies between them is private to one user"
    logs = sidecar.mounts["/logs"]
    # In a pod all containers have one host name; what a trainer says of itself is then no help.
    daemon = Container(
        layout.folder / "d",
        [sys.executable, "-P", "-m", "sidestep.sidecar", *sidecar.command[1:]],
        sidecar.user,
        {**sidecar.env, "SIDESTEP_SAMPLE_INTERVAL_S": "0.1"},
        sidecar.mounts,
        "pod",
    ).start()
    with layout.undo:
        layout.undo.callback(lambda: print(daemon.close()))
        assert "sidestep is ready: pid 1," in daemon.line()
        status = [sys.executable, "-P", "-m", "sidestep.sidecar", "status", "--json"]
        probe = daemon.execute(*status)
        assert probe.returncode == 0, probe.stdout + probe.stderr

        training = Container(
            layout.folder / "t",
            [sys.executable, "-c", TRAINER],
            trainer.user,
            trainer.env,
            trainer.mounts,
            "pod",
        ).start()
        assert training.line() == "emitted 0\n"
        events = Path(logs) / "tensorboard" / "contained"
        wait_until(
            lambda: any(b"system/cpu_percent" in f.read_bytes() for f in events.glob("events.*")),
            30,
            "no sample while it lives",
        )
        training.signal(signal.SIGKILL)
        training.close()

        drain = [sys.executable, "-P", "-m", "sidestep.sidecar", "drain", "--timeout", "60"]
        drained = daemon.execute(*drain)
        assert drained.returncode == 0, drained.stdout + drained.stderr
        assert '"state": "lost"' in daemon.execute(*status).stdout, "its outbox was taken over"
        assert daemon.signal(signal.SIGTERM) == 0

        found = scalars(*sorted(events.glob("events.out.tfevents.*")))
        assert [step for tag, step, _ in found if tag == "train/loss"] == list(range(3000))
        tags = {tag for tag, *_ in found}
        # The trainer called itself process 1, as the daemon does, whose values these would be.
        assert not {tag for tag in tags if tag.startswith("system/process_")}
