"""The argv of each container runtime, word by word: most of them do not run where the tests do."""

from __future__ import annotations

import pytest

from ecloud.model.tasks import Container
from worker.core.containers import PATH, Place, container_argv

PLACE = Place(
    "/home/w/d1", "/home/w/shared", "/home/w/control", "ecloud-w1-7-2", 1000, 100, ("A", "ECLOUD_TASK"), ("1", "GPU-x"),
    (("bin", "usr/bin"), ("etc", ""), ("tmp", ""), ("usr", "")), 5_000_000,
)  # fmt: skip
INNER = ("/bin/sh", "-c", "true")
OWN = [("/home/w/d1", "/ecloud/work"), ("/home/w/shared", "/ecloud/shared"), ("/home/w/control", "/ecloud/control")]


def argv(runtime: str, image: str = "debian:12", gpus: bool = False) -> str:
    container = Container(image, runtime, ("/data:/in:ro", "/scratch"), gpus)
    return " ".join(container_argv(container, runtime, f"/usr/bin/{runtime}", INNER, PLACE))


def binds(flag: str, joint: str = " ") -> str:
    own = " ".join(f"{flag}{joint}{here}:{there}" for here, there in OWN)
    return f"{own} {flag}{joint}/data:/in:ro {flag}{joint}/scratch:/scratch"


def test_docker() -> None:
    began = "/usr/bin/docker run --rm --init --name ecloud-w1-7-2 --workdir /ecloud/work --network host"
    given = f"{began} {binds('--volume')} --env A --env ECLOUD_TASK --memory 5000000b --user 1000:100"
    ended = "--entrypoint  debian:12 /bin/sh -c true"
    assert argv("docker") == f"{given} {ended}"
    assert argv("docker", gpus=True) == f'{given} --gpus "device=1,GPU-x" {ended}'


def test_podman() -> None:
    began = "/usr/bin/podman run --rm --init --name ecloud-w1-7-2 --workdir /ecloud/work --network host"
    given = f"{began} {binds('--volume')} --env A --env ECLOUD_TASK --memory 5000000b --userns keep-id"
    ended = "--entrypoint  debian:12 /bin/sh -c true"
    assert argv("podman") == f"{given} {ended}"
    assert argv("podman", gpus=True) == f"{given} --device nvidia.com/gpu=1 --device nvidia.com/gpu=GPU-x {ended}"


@pytest.mark.parametrize(
    ("image", "named"),
    [
        ("debian:12", "docker://debian:12"),
        ("/images/a.sif", "/images/a.sif"),
        ("a.sif", "a.sif"),
        ("library://x/y", "library://x/y"),
    ],
)
def test_apptainer(image: str, named: str) -> None:
    given = f"/usr/bin/apptainer exec --no-home --pwd /ecloud/work {binds('--bind')}"
    assert argv("apptainer", image) == f"{given} {named} /bin/sh -c true"
    assert argv("apptainer", image, gpus=True) == f"{given} --nv {named} /bin/sh -c true"


def test_charliecloud() -> None:
    told = argv("charliecloud", "/images/d")
    assert told.startswith("/usr/bin/charliecloud --cd=/ecloud/work --set-env=PATH=/usr/local/sbin:")
    assert told.endswith("--bind=/data:/in --bind=/scratch:/scratch /images/d -- /bin/sh -c true")


def test_bubblewrap() -> None:
    own = " ".join(f"--bind {here} {there}" for here, there in OWN)
    assert argv("bubblewrap", "/images/d/") == (
        "/usr/bin/bubblewrap --tmpfs / --symlink usr/bin /bin --ro-bind /images/d/etc /etc "
        f"--ro-bind /images/d/usr /usr --dev /dev --proc /proc --tmpfs /tmp --tmpfs /run {own} "
        f"--ro-bind /data /in --bind /scratch /scratch --unshare-pid "
        f"--chdir /ecloud/work --setenv PATH {PATH} -- /bin/sh -c true"
    )
    assert "--dev-bind /dev /dev" in argv("bubblewrap", "/images/d", gpus=True)
