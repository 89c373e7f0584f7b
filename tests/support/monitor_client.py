"""A monitor process and a viewer of it that speaks plain HTTP."""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
from urllib.parse import urlencode

from doors import Doors
from services import ROOT


class Answer:
    """What came back."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.code = response.status
        self.headers = response.headers
        self.text = response.read().decode("utf-8", "replace")


class Monitor:
    """A monitor process and a browser's cookie."""

    def __init__(self, doors: Doors, *options: str, token: str = "") -> None:
        command = [sys.executable, str(ROOT / "admin.py"), "monitor", "--port", "0", *options]
        environment = {**doors.environment, "ECLOUD_MONITOR_TOKEN": token}
        self.process = subprocess.Popen(
            command, cwd=doors.place, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        found = re.fullmatch(r"monitor: http://(127\.0\.0\.1:\d+)/(?:\?token=(\S+))?\n", line)
        assert found, line
        self.host, self.token = found[1], found[2] or ""
        self.cookie = ""

    def get(self, path: str, method: str = "GET", body: str = "", **headers: str) -> Answer:
        connection = http.client.HTTPConnection(self.host, timeout=60)
        sent = {"Host": self.host, **({"Cookie": self.cookie} if self.cookie else {})}
        sent.update({name.replace("_", "-"): value for name, value in headers.items()})
        if body:
            sent["Content-Type"] = "application/x-www-form-urlencoded"
        connection.request(method, path, body or None, sent)
        answer = Answer(connection.getresponse())
        connection.close()
        return answer

    def enter(self) -> None:
        answer = self.get(f"/?token={self.token}")
        assert answer.code == 303
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        assert self.token not in cookie
        self.cookie = cookie.partition(";")[0]

    def post(self, path: str, **fields: str) -> Answer:
        return self.get(path, "POST", urlencode(fields), Origin=f"http://{self.host}")

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        _, errors = self.process.communicate(timeout=30)
        assert b"Traceback" not in errors, errors.decode()


def csrf_of(page: Answer) -> str:
    found = re.search(r'name="csrf" value="(\w+)"', page.text)
    assert found
    return found[1]
