"""Guests that a user who is not root enters by SSH: their sshd sees users of its own, in a mount namespace."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from guests import Guest

USER = "visitor"
NUMBER = 61_234
"""A user and a group that no other guest has."""


class UnprivilegedGuest(Guest):
    """A bare guest. Root's part of it is shut to `USER`, who has a home there and `sudo` as `sudo` says: a shell script
    that stands for it."""

    def __init__(self, directory: Path, address: str, ssh_port: int, sudo: str = "") -> None:
        super().__init__(directory, address, "bare", ssh_port)
        self.home = directory / "home/visitor"
        self.home.mkdir(parents=True)
        for place in (self.home, self.home.parent, directory, directory / "root"):
            place.chmod(0o755)
        os.chown(self.home, NUMBER, NUMBER)
        (directory / "var/lib/ecloud").mkdir(mode=0o700)
        if sudo:
            program = directory / "sbin/sudo"
            program.write_text(f"#!/bin/sh\n{sudo}\n")
            program.chmod(0o755)

    def sshd_command(self) -> list[str]:
        """With one user more than this machine has, and with the home that the guest gives it."""
        etc = self.root / "etc"
        for name, line in (
            ("passwd", f"{USER}:x:{NUMBER}:{NUMBER}::{self.home}:/bin/sh"),
            ("group", f"{USER}:x:{NUMBER}:"),
        ):
            (etc / name).write_text(Path("/etc", name).read_text().rstrip("\n") + f"\n{line}\n")
        config = etc / "ssh/sshd_config"
        config.write_text(config.read_text().replace(f"HOME={self.root}/root", f"HOME={self.home}"))
        (etc / "ssh").chmod(0o755)
        mounts = "".join(f"mount --bind '{etc}/{name}' /etc/{name} && " for name in ("passwd", "group"))
        return ["unshare", "--mount", "/bin/sh", "-c", f'{mounts}exec "$@"', "sh", *super().sshd_command()]


def why_not() -> str:
    """Why no such guest can be made here; empty where it can."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return "another user takes root and unshare"
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True)
    return done.stderr.strip()
