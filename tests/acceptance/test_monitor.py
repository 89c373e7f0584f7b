"""The monitor, as a browser and as an attacker meet it: pages of a real boss, escaped and guarded."""

from __future__ import annotations

import html
import re
import select
import socket
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import quote, urlencode

import pytest
import sqlalchemy as sa
from doors import Doors
from monitor_client import Monitor, csrf_of
from monitored import fill
from services import wait_until

from ecloud.db import schema
from ecloud.db.database import make_engine

EVIL = "<script>alert(1)</script>"
TASKS = [
    {
        "id": f"bad-{EVIL}",
        "commands": "echo '</pre><script>x</script>' >&2; printf '\\033[31mred' >&2; exit 3",
        "labels": [EVIL],
    },
    {"id": "fine", "commands": "echo fine; echo '<b>out</b>'"},
    {"id": "after", "commands": "true", "dependencies": [f"bad-{EVIL}"]},
    *({"id": f"same-{number}", "commands": f"echo 'no row {number}' >&2; exit 4"} for number in range(5)),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    """A cluster that ran a list with names and outputs of bad intent."""
    doors = Doors(tmp_path_factory.mktemp("monitored"))
    doors.admin("start")
    doors.push(doors.write("t.json", TASKS), "--wait", "--run", f"r {EVIL}/%2e", code=1)
    yield doors
    doors.admin("stop", "--vms", code=None)


@pytest.fixture
def monitor(place: Doors) -> Iterator[Monitor]:
    made = Monitor(place)
    yield made
    made.end()


def test_pages_show_what_happened_and_escape_it(monitor: Monitor) -> None:
    monitor.enter()
    run = quote(f"r {EVIL}/%2e", safe="")
    bad = urlencode({"run": f"r {EVIL}/%2e", "id": f"bad-{EVIL}"})
    some = "/tasks?state=failed&text=same"
    opened = f"/run/{run}?" + urlencode({"kind": EVIL, "from": 0, "to": EVIL})
    paths = ("/", f"/run/{run}", opened, f"/sweep/{run}", "/tasks", some, f"/task?{bad}", "/machines", "/ledger")
    pages = {path: monitor.get(path) for path in paths}
    for path, page in pages.items():
        assert page.code == 200, (path, page.text)
        assert "<script>alert" not in page.text, path
        assert "<script>x" not in page.text, path
        assert "\x1b" not in page.text, path
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert "style=" not in page.text, "inline styles are refused by the policy"
    assert "leads" in pages["/"].text
    assert "no row #" in pages[f"/run/{run}"].text, "failures that differ in a number are one group"
    assert pages[some].text.count("/task?run=") == 5
    assert "&lt;/pre&gt;&lt;script&gt;x" in pages[f"/task?{bad}"].text
    assert "failed" in pages[f"/task?{bad}"].text
    assert monitor.get("/run/nope").code == 404
    assert monitor.get("/task?id=nope").code == 404


def test_a_fragment_is_sent_once(monitor: Monitor) -> None:
    monitor.enter()
    whole, part = monitor.get("/tasks"), monitor.get("/tasks", X_Fragment="1")
    assert "<html" in whole.text
    assert "<html" not in part.text
    again = monitor.get("/tasks", X_Fragment="1", If_None_Match=part.headers["etag"])
    assert (again.code, again.text) == (304, "")


def test_strangers_and_other_sites_get_nothing(monitor: Monitor) -> None:
    assert monitor.get("/").code == 401
    assert monitor.get("/?token=wrong").code == 401
    assert monitor.get("/metrics").code == 401
    assert monitor.get("/metrics", Authorization=f"Bearer {monitor.token}").code == 200
    monitor.enter()
    for method in ("GET", "POST"):
        assert monitor.get("/", method, Host="evil.example:80").code == 421, "DNS rebinding"
    assert monitor.get(f"//evil.example/?token={monitor.token}").headers["location"] == "/evil.example/"
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd"):
        assert monitor.get(path).code == 404, path
    form = {"verb": "cancel", "run": "r", "csrf": csrf_of(monitor.get("/confirm?verb=drain_worker&id=w"))}
    assert monitor.get("/do", "POST", urlencode(form)).code == 403, "no origin"
    assert monitor.get("/do", "POST", urlencode(form), Origin="http://evil.example").code == 403
    assert monitor.post("/do", verb="cancel", run="r", csrf="00").code == 403
    assert monitor.get("/do", "DELETE", Origin=f"http://{monitor.host}").code == 405
    assert monitor.get("/do").code == 405
    assert monitor.get("/", Content_Length="100000000").code == 413
    assert post_in_chunks(monitor, 100_000_000) == 413, "also without a declared length"
    assert "evil" not in monitor.get("/").headers.get("access-control-allow-origin", "")


def post_in_chunks(monitor: Monitor, size: int) -> int:
    """Send a body of unknown length until the monitor answers; the status of its answer."""
    host, port = monitor.host.split(":")
    chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    with socket.create_connection((host, int(port)), 30) as connection:
        head = f"POST /do HTTP/1.1\r\nHost: {monitor.host}\r\nOrigin: http://{monitor.host}\r\n"
        connection.sendall(f"{head}Cookie: {monitor.cookie}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        with suppress(ConnectionError):  # it answers and closes
            for _ in range(size // len(chunk)):
                if select.select([connection], [], [], 0)[0]:
                    break
                connection.sendall(chunk)
        return int(connection.recv(100).split()[1])


def test_a_thousand_slow_connections_keep_no_other_out(monitor: Monitor) -> None:
    monitor.enter()
    host, port = monitor.host.split(":")
    slow = [socket.create_connection((host, int(port)), 10) for _ in range(1_000)]
    try:
        for connection in slow:
            connection.send(b"GET / HTTP/1.1\r\nHost:")
        assert monitor.get("/").code == 200
    finally:
        for connection in slow:
            connection.close()


def test_failed_tasks_are_retried_from_the_page(monitor: Monitor, place: Doors) -> None:
    monitor.enter()
    run = f"r {EVIL}/%2e"

    def tries() -> int:
        return len(place.admin("show_task", f"{run}:same-1", "--json").json["attempts"])

    before = tries()
    page = monitor.get("/confirm?" + urlencode({"verb": "retry_failed", "run": run, "id": "same-1"}))
    assert "Run task same-1" in page.text
    done = monitor.post("/do", verb="retry_failed", run=run, id="same-1", csrf=csrf_of(page))
    assert done.code == 303, done.text
    wait_until(lambda: tries() > before, 60, "the boss retries")


def test_a_group_of_failures_is_retried_from_the_page(monitor: Monitor, place: Doors) -> None:
    monitor.enter()
    run = f"r {EVIL}/%2e"
    link = re.search(
        r'href="(/confirm\?verb=retry_failed[^"]*group=\w+)"', monitor.get(f"/run/{quote(run, safe='')}").text
    )
    assert link
    page = monitor.get(html.unescape(link[1]))
    assert re.search(r"Run [35] tasks of run .* that failed in one way", page.text), page.text
    group = re.search(r'name="group" value="(\w+)"', page.text)
    assert group
    done = monitor.post("/do", verb="retry_failed", run=run, group=group[1], csrf=csrf_of(page))
    assert done.code == 303, done.text
    wait_until(
        lambda: len(place.admin("show_task", f"{run}:same-2", "--json").json["attempts"]) == 2,
        60,
        "they are tried again",
    )
    assert monitor.post("/do", verb="retry_failed", run=run, group="00", csrf=csrf_of(page)).code == 409


def test_a_request_that_changes_nothing_is_answered_with_the_reason(monitor: Monitor) -> None:
    monitor.enter()
    csrf = csrf_of(monitor.get("/confirm?verb=instantiate_worker&pool=local"))
    monitor.post("/do", verb="instantiate_worker", pool="local", n="1000", csrf=csrf)
    again = monitor.post("/do", verb="instantiate_worker", pool="local", n="1", csrf=csrf)
    assert again.code == 200
    assert "Nothing changed" in again.text
    assert "allows no more" in again.text


def test_the_output_of_a_running_task_is_read_by_its_offset(monitor: Monitor, place: Doors) -> None:
    monitor.enter()
    go_on = place.place / "go-on"
    command = f"echo first; while ! test -e {go_on}; do sleep 0.05; done; echo second"
    place.push(place.write("live.json", [{"id": "live", "commands": command}]), "--run", "live")
    place_of = "/log?" + urlencode({"run": "live", "id": "live", "stream": "stdout"})
    heard = ""

    def read_on() -> None:
        nonlocal heard
        answer = monitor.get(f"{place_of}&offset={len(heard)}")
        if answer.code == 200:
            heard += answer.text
            assert int(answer.headers["x-next-offset"]) == len(heard)

    def has(text: str) -> bool:
        read_on()
        return text in heard

    wait_until(lambda: has("first\n"), 60, "the first line is heard while the task runs")
    page = "/task?run=live&id=live"
    wait_until(lambda: "data-log" in monitor.get(page).text, 60, "its start is recorded and its page follows it")
    go_on.touch()
    wait_until(lambda: has("second\n"), 60, "the second line follows")
    assert heard == "first\nsecond\n"
    assert monitor.get(f"{place_of}&offset=x").code == 400


def test_a_page_of_a_thousand_machines_stays_small_and_leads_to_the_others(doors: Doors) -> None:
    doors.admin("start")
    doors.admin("stop", "--vms")
    engine = make_engine(f"sqlite:///{doors.place}/home/ecloud.db")
    fill(engine, 10)
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        for table, key in ((schema.vms, "vm_no"), (schema.workers, "worker")):
            one = connection.execute(sa.select(table)).mappings().first()
            assert one is not None
            connection.execute(table.delete())
            number = "{:03d}".format if key == "worker" else int
            state = {"state": "up", "trouble": "no space"} if key == "worker" else {"state": "running", "gone_at": None}
            rows = [{**one, **state, key: number(at + 1), "vm_no": at + 1} for at in range(1_000)]
            connection.execute(table.insert(), rows)
    engine.dispose()
    monitor = Monitor(doors)
    try:
        monitor.enter()
        page = monitor.get("/machines")
        assert len(page.text.encode()) < 100_000
        assert "60 of 1,000" in page.text
        assert "<td>001</td>" in page.text
        assert 'href="/machines?page=1"' in page.text
        assert "<td>061</td>" in monitor.get("/machines?page=1").text
        assert monitor.get("/machines?page=999").code == 200
    finally:
        monitor.end()


def test_with_a_password_the_token_in_an_address_is_of_no_use(place: Doors) -> None:
    secret = place.place / "password"
    secret.write_text("correct horse battery\n")
    secret.chmod(0o600)
    monitor = Monitor(place, "--password_file", str(secret), token="the-token-of-programs")
    try:
        origin = f"http://{monitor.host}"
        assert monitor.get("/?token=the-token-of-programs").code == 401
        assert monitor.get("/", Accept="text/html").headers["location"] == "/login"
        assert "password" in monitor.get("/login").text
        wrong = monitor.get("/login", "POST", urlencode({"password": "wrong"}), Origin=origin)
        assert wrong.code == 401
        foreign = monitor.get(
            "/login", "POST", urlencode({"password": "correct horse battery"}), Origin="http://evil.example"
        )
        assert foreign.code == 403
        right = monitor.get("/login", "POST", urlencode({"password": "correct horse battery"}), Origin=origin)
        assert right.code == 303
        monitor.cookie = right.headers["set-cookie"].partition(";")[0]
        assert monitor.get("/").code == 200
        assert monitor.get("/metrics", Authorization="Bearer the-token-of-programs").code == 200
    finally:
        monitor.end()


def test_without_a_boss_it_reports_that_and_shows_what_is_known(doors: Doors) -> None:
    doors.admin("start")
    doors.admin("stop", "--vms")
    monitor = Monitor(doors)
    try:
        monitor.enter()
        wait_until(lambda: "No boss leads" in monitor.get("/").text, 60, "the page says that no boss leads")
        assert monitor.get("/tasks").code == 200
        page = monitor.get("/confirm?verb=drain_worker&id=w")
        answer = monitor.post("/do", verb="cancel", run="r", csrf=csrf_of(page))
        assert answer.code == 503
        assert "admin.py start" in answer.text
    finally:
        monitor.end()


def test_read_only_changes_nothing(place: Doors) -> None:
    monitor = Monitor(place, "--read_only")
    try:
        monitor.enter()
        assert "/confirm" not in monitor.get("/machines").text
        assert monitor.post("/do", verb="cancel", run="r", csrf="x").code == 403
    finally:
        monitor.end()


def test_addresses_that_cannot_be_served_are_refused(doors: Doors) -> None:
    assert "--password_file" in doors.admin("monitor", "--host", "0.0.0.0", code=2).err
    secret = doors.place / "password"
    secret.write_text("correct horse battery")
    assert "chmod 600" in doors.admin("monitor", "--password_file", secret, code=2).err
    secret.chmod(0o600)
    found = doors.admin("monitor", "--host", "0.0.0.0", "--password_file", secret, code=2).err
    assert "--tls_cert" in found
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot listen" in doors.admin("monitor", "--port", taken.getsockname()[1], code=2).err


def test_metrics_are_bounded_and_true(monitor: Monitor) -> None:
    text = monitor.get("/metrics", Authorization=f"Bearer {monitor.token}").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['ecloud_tasks{state="succeeded"}']) >= 1
    assert float(values["ecloud_commit_seconds_count"]) > 0, "the boss of this home told its numbers"
    assert float(values["ecloud_boss_leads"]) == 1
    assert len(values) < 2_000
    assert EVIL not in text
