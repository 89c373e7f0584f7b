"""Debian's Prometheus scrapes the monitor, and the rules of docs/monitoring fire."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import urllib.request
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
import sqlalchemy as sa
import uvicorn
from monitored import fill
from services import ROOT, wait_until
from sqlalchemy.engine import Engine

from ecloud.db import schema
from ecloud.model.finding import Finding
from ecloud.web import pages
from ecloud.web.app import Parts, make_app
from ecloud.web.security import Secret

RULES = ROOT / "docs" / "monitoring" / "alerts.yml"
FIRED = {
    "EcloudNoLeader", "EcloudPartAway", "EcloudPoolClosed", "EcloudQueueOld", "EcloudVmsDoNotEnd", "EcloudVmLeak",
}  # fmt: skip


def trouble(engine: Engine) -> None:
    """An old queue, a VM that does not end, one that was written off."""
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        connection.execute(
            sa.update(schema.tasks).where(schema.tasks.c.task_no == 1).values(state="ready", changed_at=1)
        )
        connection.execute(sa.update(schema.vms).where(schema.vms.c.vm_no == 1).values(state="ending"))
        connection.execute(sa.update(schema.vms).where(schema.vms.c.vm_no == 2).values(cause="written off"))


def serve(engine: Engine, listener: socket.socket) -> uvicorn.Server:
    port = listener.getsockname()[1]
    parts = Parts(
        lambda: engine, lambda _: cast(Any, nullcontext()), bytes, lambda: [Finding("broker", "is away", "start it")]
    )
    site = make_app(parts, Secret("a-token"), [f"127.0.0.1:{port}"])
    return uvicorn.Server(uvicorn.Config(site, log_level="error", lifespan="off"))


def test_prometheus_scrapes_and_every_rule_of_trouble_fires(sqlite_engine: Engine, tmp_path: Path) -> None:
    prometheus = shutil.which("prometheus") or "/usr/bin/prometheus"
    fill(sqlite_engine, 100, ended=False)
    trouble(sqlite_engine)
    listener = socket.create_server(("127.0.0.1", 0))
    server = serve(sqlite_engine, listener)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    # The rules as they are, but for their patience.
    rules = re.sub(r"for: \d+m", "for: 0s", RULES.read_text())
    (tmp_path / "alerts.yml").write_text(rules)
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["alerts.yml"],
        "scrape_configs": [{
            "job_name": "ecloud",
            "authorization": {"credentials": "a-token"},
            "static_configs": [{"targets": [f"127.0.0.1:{listener.getsockname()[1]}"]}],
        }],
    }  # fmt: skip
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    command = [
        prometheus, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:

        def asked(path: str) -> Any:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}", timeout=10) as answer:
                return json.load(answer)["data"]

        def firing() -> set[str]:
            try:
                return {one["labels"]["alertname"] for one in asked("alerts")["alerts"] if one["state"] == "firing"}
            except OSError:
                return set()

        wait_until(lambda: firing() >= FIRED, 90, f"the rules {FIRED} fire")
        assert "EcloudMonitorAway" not in firing()
        assert "EcloudSlowCommits" not in firing()
        series = asked("query?query=count(%7Bjob%3D%22ecloud%22%7D)")["result"][0]["value"][1]
        assert int(series) < 2_000
        for panel in json.loads((RULES.parent / "grafana.json").read_text())["panels"]:
            for target in panel["targets"]:
                names = re.findall(r"ecloud_\w+", target["expr"])
                assert names, panel["title"]
    finally:
        process.terminate()
        process.wait(30)
        server.should_exit = True
        thread.join(30)


def test_a_scrape_does_not_wait_for_the_ledger_of_many_tasks(
    sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "SMALL", 10)
    fill(sqlite_engine, 100)
    listener = socket.create_server(("127.0.0.1", 0))
    server = serve(sqlite_engine, listener)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:

        def scraped() -> str:
            address = f"http://127.0.0.1:{listener.getsockname()[1]}/metrics"
            request = urllib.request.Request(address, headers={"Authorization": "Bearer a-token"})
            with urllib.request.urlopen(request, timeout=30) as answer:
                return str(answer.read().decode())

        first = scraped()
        assert 'ecloud_tasks{state="failed"} 1.0' in first
        assert "ecloud_vm_seconds_total" not in first, "a helper process has just begun to compute it"
        wait_until(lambda: 'ecloud_vm_seconds_total{pool="small",use="running"}' in scraped(), 90, "it follows")
    finally:
        server.should_exit = True
        thread.join(30)


def test_dashboard_and_rules_name_metrics_that_the_docs_explain() -> None:
    explained = (ROOT / "docs" / "monitoring.md").read_text()
    for file in ("alerts.yml", "grafana.json"):
        for name in set(re.findall(r"ecloud_[a-z_]+", (RULES.parent / file).read_text())):
            assert name.removesuffix("_bucket") in explained, name
