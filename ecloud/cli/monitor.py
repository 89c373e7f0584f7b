"""`admin.py monitor`: serves the web pages in this process, until Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec
import psutil

from datastore.problem import DONE, INTERRUPTED, Problem
from ecloud.cli import app
from ecloud.config.processes import die_with_parent
from ecloud.config.settings import load_settings

if TYPE_CHECKING:
    from ecloud.model.finding import Finding
    from ecloud.queries.sweep_table import SweepTable

EVERY_ADDRESS = ("0.0.0.0", "::")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SLOW_CONNECTIONS = 2_000
"""Maximum number of concurrent connections; further ones get status 503."""
KEEP_ALIVE_S = 15
MIN_PASSWORD_CHARS = 12


class Served(msgspec.Struct, frozen=True):
    """Address and access rules of the monitor. `tied`: it ends with the process that started it."""

    host: str = "127.0.0.1"
    port: int = 8787
    read_only: bool = False
    tls_cert: str = ""
    tls_key: str = ""
    password_file: str = ""
    open_browser: bool = False
    tied: bool = False
    as_json: bool = False

    @property
    def is_open(self) -> bool:
        """Whether other machines can reach it."""
        return self.host not in LOOPBACK


def monitor(served: Served) -> NoReturn:
    """Serve until Ctrl-C, and end this process. Raises `Problem` if the address cannot be used."""
    try:
        import uvicorn

        from ecloud.web.app import Parts, make_app
        from ecloud.web.security import Secret
    except ImportError as error:
        raise Problem(f"the monitor needs the package {error.name}", "pip install 'ecloud[monitor]'") from None
    from ecloud.config.secrets import cluster_secret
    from ecloud.queries.why import pools_of

    if served.tied:
        die_with_parent()
    settings = load_settings()
    password = _password(served)
    _require_tls(served)
    listener = _listen(served.host, served.port)
    port = listener.getsockname()[1]
    secret = Secret(os.environ.get("ECLOUD_MONITOR_TOKEN", ""))
    home = settings.home_directory
    parts = Parts(
        engine=lambda: app.database(settings),
        boss=lambda watchdog: app.boss(settings, watchdog),
        secret=lambda: cluster_secret(home),
        look=findings,
        sweep=sweep_table,
        boss_numbers=home.boss_numbers,
    )
    site = make_app(
        parts, secret, _hosts(served, port), cluster=str(home.path), pools=pools_of(settings),
        read_only=served.read_only, password=password,
    )  # fmt: skip
    host = socket.gethostname() if served.host in EVERY_ADDRESS else served.host
    shown = f"[{host}]" if ":" in host else host
    url = f"{'https' if served.tls_cert else 'http'}://{shown}:{port}/" + ("" if password else f"?token={secret.token}")
    # Python's own handler may raise where the exception is ignored, and Ctrl-C would be lost.
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))
    print(json.dumps({"url": url}) if served.as_json else f"monitor: {url}", flush=True)
    if served.open_browser:
        import webbrowser

        webbrowser.open(url)
    config = uvicorn.Config(
        site, log_level="warning", access_log=False, server_header=False, lifespan="off",
        limit_concurrency=SLOW_CONNECTIONS, timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=2,
        proxy_headers=False, ssl_certfile=served.tls_cert or None, ssl_keyfile=served.tls_key or None,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listener])
    # The questions that are still being answered only read, and may take minutes: Python would wait for them.
    os._exit(DONE)


def findings() -> list[Finding]:
    """Return the findings of the doctor, for the overview."""
    from ecloud.cli import doctor

    return list(doctor.look())


def sweep_table(run: str) -> SweepTable:
    """Return the parameters and numbers of a run, for its page. Called in the monitor's helper process."""
    from ecloud.cli.sweep import whole_table

    return whole_table(run, load_settings())


def _password(served: Served) -> str:
    if not served.password_file:
        if served.is_open:
            raise Problem(
                f"{served.host} can be reached from other machines: the monitor needs a password there",
                "give --password_file FILE (one line), --tls_cert FILE and --tls_key FILE; or let it listen on "
                f"127.0.0.1 and come by ssh -L {served.port}:127.0.0.1:{served.port} USER@THIS_HOST",
            )
        return ""
    path = Path(served.password_file)
    password = path.read_text().strip()
    if len(password) < MIN_PASSWORD_CHARS:
        raise Problem(f"{path}: a password needs at least {MIN_PASSWORD_CHARS} characters")
    if path.stat().st_mode & 0o077:
        raise Problem(f"others can read {path}", f"chmod 600 {path}")
    return password


def _require_tls(served: Served) -> None:
    if served.is_open and not (served.tls_cert and served.tls_key):
        text = f"{served.host} can be reached from other machines: the monitor needs TLS there"
        raise Problem(text, "give --tls_cert FILE and --tls_key FILE")
    for name in filter(None, (served.tls_cert, served.tls_key)):
        if not Path(name).is_file():
            raise Problem(f"{name}: there is no such file")


def _hosts(served: Served, port: int) -> list[str]:
    """Return the accepted `Host` headers."""
    names = {served.host, *LOOPBACK}
    if served.is_open:
        # A browser sends an IP address only if its user typed it, so DNS rebinding is impossible with one.
        addresses = {one.address for some in psutil.net_if_addrs().values() for one in some}
        names |= {socket.gethostname(), socket.getfqdn(), *addresses}
    return [f"[{name}]:{port}" if ":" in name else f"{name}:{port}" for name in names]


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(SLOW_CONNECTIONS)  # early connections wait until the pages are ready
    except OSError as error:
        raise Problem(
            f"the monitor cannot listen on {host}:{port}: {error.strerror}", "name another --port, or 0"
        ) from None
    return listener
