"""`admin.py monitor`: starts the web pages in this process, until Ctrl-C."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from datastore.problem import DONE, Problem
from ecloud.cli import app
from ecloud.config.settings import load_settings

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SLOW_CONNECTIONS = 2_000
"""Connections at once; further ones are answered 503."""
KEEP_ALIVE_S = 15


def monitor(
    host: str, port: int, read_only: bool, tls_cert: str, tls_key: str, open_browser: bool, as_json: bool
) -> int:
    """Serve until Ctrl-C. Raises `Problem` where the address can't be used."""
    try:
        import uvicorn

        from ecloud.web.app import make_app
        from ecloud.web.security import Secret
    except ImportError as error:
        raise Problem(f"the monitor needs the package {error.name}", "pip install 'ecloud[monitor]'") from None
    from ecloud.queries.why import pools_of

    settings = load_settings()
    tls = bool(tls_cert or tls_key)
    if host not in LOOPBACK and not (tls_cert and tls_key):
        raise Problem(
            f"{host} can be reached from other machines",
            "give --tls_cert FILE and --tls_key FILE, or let it listen on 127.0.0.1 and come by "
            f"ssh -L {port}:127.0.0.1:{port} USER@THIS_HOST",
        )
    for name in filter(None, (tls_cert, tls_key)):
        if not Path(name).is_file():
            raise Problem(f"{name}: there is no such file")
    listener = _listen(host, port)
    port = listener.getsockname()[1]
    secret = Secret(os.environ.get("ECLOUD_MONITOR_TOKEN", ""))
    names = {host, *(LOOPBACK if host in LOOPBACK else (socket.gethostname(), socket.getfqdn()))}
    hosts = [f"[{name}]:{port}" if ":" in name else f"{name}:{port}" for name in names]
    site = make_app(
        lambda: app.database(settings),
        lambda: app.boss(settings),
        secret,
        hosts,
        cluster=str(settings.home_directory.path),
        pools=pools_of(settings),
        read_only=read_only,
    )
    shown = f"[{host}]" if ":" in host else host
    url = f"{'https' if tls else 'http'}://{shown}:{port}/?token={secret.token}"
    print(json.dumps({"url": url}) if as_json else f"monitor: {url}", flush=True)
    if open_browser:
        import webbrowser

        webbrowser.open(url)
    config = uvicorn.Config(
        site, log_level="warning", access_log=False, server_header=False, lifespan="off",
        limit_concurrency=SLOW_CONNECTIONS, timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=2,
        proxy_headers=False, ssl_certfile=tls_cert or None, ssl_keyfile=tls_key or None,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listener])
    return DONE


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(SLOW_CONNECTIONS)  # whoever comes before the pages are ready waits
    except OSError as error:
        raise Problem(
            f"the monitor can't listen on {host}:{port}: {error.strerror}", "name another --port, or 0"
        ) from None
    return listener
