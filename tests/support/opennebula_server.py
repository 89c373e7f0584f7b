"""The HTTP side of the OpenNebula double, and all that can go wrong there and behind it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opennebula_xml import success


@dataclass
class Faults:
    """What is to go wrong, and how. Times in seconds."""

    slow_s: float = 0.0
    """Before each answer."""
    trickle_s: float = 0.0
    """Between the pieces of each answer, which never becomes whole in good time."""
    every_third: str = ""
    """A kind, below, for each third call: a cloud that flaps."""
    next_calls: list[tuple[str, str]] = field(default_factory=list)
    """(method, kind) once each. Kinds: `reset` before the call is made; `never`: heard, never made, never answered;
    `early`: made when the double's `let_go` is set, as by a cloud that has much to do, and never answered; `lost`:
    made, and the connection broken off; `hang`: made and never answered; `late`: made, and answered when `let_go` is
    set; `500`; `502 made`; `404`; `garbage`; `torn`: half of the answer; `cut`, `stalled`: the connection breaks off,
    or rests for ever, in the middle of one; `wrong object`."""
    terminate_lies: bool = False
    """OK, and nothing happens."""
    shutdown_fails: bool = False
    """Goes back to RUNNING without a word."""
    never_boots: bool = False
    stays_in_prolog: bool = False
    boot_fails: bool = False
    prolog_fails: bool = False
    nothing_fits: bool = False
    """PENDING for ever, with a reason."""
    unplugged: bool = False
    """VMs run, but no guest starts: an image without context."""
    only_admin_sees_hosts: bool = True
    groups_are_hidden: bool = False
    sets_lack_done: bool = False
    """`vmpool.infoset` leaves out VMs that are DONE, as `vmpool.info` does."""


def make_server(cloud: Any, tls: tuple[Path, Path] | None) -> ThreadingHTTPServer:
    """The HTTP side of a double: `cloud.answer(body)`, spoilt as `cloud.faults` says."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path.split("://")[-1].partition("/")[2] != "RPC2" and self.path != "/RPC2":
                self.send_error(404)
                return
            kind = self._fault(body)
            faults = cloud.faults
            if kind in ("500", "404"):
                self.send_error(int(kind))
                return
            if kind == "reset":
                self.close_connection = True
                return
            if kind in ("never", "early"):
                cloud.held.append(kind)
                (cloud.released if kind == "never" else cloud.let_go).wait(60)
                if kind == "early":
                    cloud.answer(body)
                self.close_connection = True
                return
            text = cloud.answer(body)
            if kind == "lost":
                self.close_connection = True
                return
            if kind == "502 made":
                self.send_error(502)
                return
            if kind == "late":
                cloud.let_go.wait(60)
            if kind == "hang":
                cloud.released.wait(60)
                self.close_connection = True
                return
            text = {"garbage": "<html>a login page", "torn": text[: len(text) // 2]}.get(kind, text)
            if kind == "wrong object":
                text = success("<USER><ID>1</ID></USER>")
            cloud.released.wait(faults.slow_s)
            self._send(text.encode(), faults.trickle_s, kind)

        def _fault(self, body: bytes) -> str:
            method = body.partition(b"<methodName>one.")[2].partition(b"<")[0].decode()
            with cloud.lock:
                for item in cloud.faults.next_calls:
                    if item[0] == method:
                        cloud.faults.next_calls.remove(item)
                        return item[1]
                cloud.calls["all"] += 1
                return cloud.faults.every_third if cloud.calls["all"] % 3 == 0 else ""

        def _send(self, data: bytes, trickle_s: float, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/xml; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if kind in ("cut", "stalled"):
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                cloud.released.wait(60 if kind == "stalled" else 0)
                self.close_connection = True
            elif not trickle_s:
                self.wfile.write(data)
            for index in range(len(data) if trickle_s else 0):
                if cloud.released.wait(trickle_s):
                    break
                self.wfile.write(data[index : index + 1])

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *_: Any) -> None:
            """A client that went away is no news."""

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*map(str, tls))
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    return server
