"""`python -m boss`: the daemon. With no settings: SQLite, a broker of its own and workers on this machine.

Puts the parts together in the order in which they depend on each other; each failure is one sentence with a remedy.
Database or broker away at the start: wait and report it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import logging.handlers
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Thread, Timer
from typing import TypeVar

import click
import msgspec
from sqlalchemy.engine import Engine

from boss.core.model.config import BossConfig, PoolConfig
from boss.core.model.events import Event
from boss.providers.accounts import account_of, open_staging
from boss.providers.provider import CredentialsWrong, Provider, TryLater
from boss.providers.registry import open_clouds, open_visitors
from boss.providers.slurm_jobs import seconds_of
from boss.shell.calls import Calls
from boss.shell.companion import Companion
from boss.shell.embedded_broker import EmbeddedBroker
from boss.shell.hook import Hook
from boss.shell.runtime import Clock, Runtime
from boss.shell.storage import Storage
from boss.store.store import AnotherBossLeads, CommitRefused, Store, StoreAway
from datastore.directory import DirectoryDatastore
from datastore.keys import KeyToolFailed
from datastore.port import DatastoreAway
from datastore.problem import DONE, INTERRUPTED, PART_AWAY, Problem
from ecloud import VERSION
from ecloud.client.broker import BrokerAddress, external_broker
from ecloud.config.datastore_address import NOTES, directory_of, is_ssh
from ecloud.config.home import Home
from ecloud.config.hosts_file import read_boss_options
from ecloud.config.log_lines import WithZone
from ecloud.config.processes import die_with_parent
from ecloud.config.secrets import CLIENT_KEY_NAME, AccessFile, cluster_secret, derive_key, write_access
from ecloud.config.settings import PoolSettings, Settings, default_pools, load_settings, size_of
from ecloud.db.database import DatabaseAway, SchemaWrong, database_url, make_engine, migrate, require_schema
from ecloud.model.text import when
from ecloud.model.wire import DatastoreAccess

log = logging.getLogger("boss")
LOG_BYTES = 10_000_000
LOGS_KEPT = 3
BOOT_S = {"local": 1.0, "opennebula": 60.0, "slurm": 10.0, "ssh_hosts": 5.0}
"""How long a VM of a cloud is guessed to take until its worker reports, before any did."""
WAIT_S = 2.0
LEAVE_S = 8.0
"""How long a boss that was ordered to stop waits for its database; `admin.py stop` waits for 30 s."""
MONITOR_LOOKS = 150
"""How often, every 0.2 s, the boss looks for the address of the monitor."""
_T = TypeVar("_T")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, message=f"ecloud {VERSION}")
@click.option("--home", metavar="DIR", help="The boss's home directory [ECLOUD_HOME or ~/.ecloud].")
@click.option("--datastore", metavar="DIR", help="The datastore's directory [HOME/datastore].")
@click.option(
    "--local", "local_workers", type=click.IntRange(1), metavar="N", help="At most N workers on this machine."
)
@click.option("--broker_host", metavar="HOST", help="The broker's machine [BROKER_HOST].")
@click.option(
    "--listen", metavar="ADDRESS[:PORT]",
    help="Let other machines reach the embedded broker at this address, with TLS [BROKER_LISTEN].",
)  # fmt: skip
@click.option("--standby", is_flag=True, help="If another boss leads, wait until it is gone.")
@click.option("--end_vms", is_flag=True, help="End all VMs when stopped.")
@click.option(
    "--monitor", "monitor_port", is_flag=False, flag_value=8787, type=int, metavar="[PORT]",
    help="Also start the web pages [port 8787; 0: any] and print their address.",
)  # fmt: skip
@click.option("--keep_dirs", is_flag=True, hidden=True)
@click.option("--tied", is_flag=True, hidden=True, help="End, with all VMs, when the parent process ends.")
def main(
    home: str | None,
    datastore: str | None,
    local_workers: int | None,
    broker_host: str | None,
    listen: str | None,
    standby: bool,
    end_vms: bool,
    monitor_port: int | None,
    keep_dirs: bool,
    tied: bool,
) -> None:
    """The boss: keeps tasks in the database, gives ready ones to workers, starts and ends VMs. Runs until stopped."""
    if tied:
        die_with_parent()
    try:
        overrides: dict[str, object] = {"home": home, "datastore": datastore, "broker_host": broker_host,
                                            "broker_listen": listen}  # fmt: skip
        if local_workers is not None:
            overrides["pools"] = default_pools(local_workers)
        if tied:
            overrides.update(boss_gone_exit_s=10.0, broker_host="", broker_listen="", database_url="")
        settings = load_settings(overrides)
        place = _make_home(settings)
        for_hosts = read_boss_options(place)
        if not (for_hosts.own_workers or settings.pools):
            settings = msgspec.structs.replace(settings, pools=(PoolSettings("local", maximum=0),))
        _start_log(settings, place, tied)
        listen = for_hosts.broker_listen
        code = Start(settings, place, standby, end_vms or tied, tied, keep_dirs, listen, monitor_port).run()
    except Problem as error:
        for line in error.lines:
            print(f"boss: {line}", file=sys.stderr)
        if log.hasHandlers():  # a home that cannot be made has no log
            log.error("%s", error)
        code = error.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    raise SystemExit(code)


def _make_home(settings: Settings) -> Home:
    try:
        return settings.home_directory.make()
    except OSError as error:
        raise Problem(f"the home {settings.home} cannot be made: {error.strerror}", "set HOME or ECLOUD_HOME") from None


def _start_log(settings: Settings, home: Home, tied: bool) -> None:
    handlers: list[logging.Handler] = [
        logging.handlers.RotatingFileHandler(home.log, maxBytes=LOG_BYTES, backupCount=LOGS_KEPT)
    ]
    if sys.stderr.isatty() and not tied:
        handlers.append(logging.StreamHandler(sys.stderr))
    for handler in handlers:
        handler.setFormatter(WithZone("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.log_level, handlers=handlers)
    logging.getLogger("alembic").setLevel(logging.WARNING)


class Start:
    """One start of the boss, from settings to the loop and back."""

    def __init__(
        self,
        settings: Settings,
        home: Home,
        standby: bool,
        end_vms: bool,
        tied: bool,
        keep_dirs: bool,
        broker_listen: str,
        monitor_port: int | None = None,
    ) -> None:
        self._settings = settings
        self._home = home
        self._standby = standby
        self._end_vms = end_vms
        self._tied = tied
        self._keep_dirs = keep_dirs
        self._broker_listen = broker_listen
        self._clock = Clock()
        self._lock_file: int | None = None
        self._embedded: EmbeddedBroker | None = None
        self._stopping = False
        self._runtime: Runtime | None = None
        self._monitor_port = monitor_port
        self._companions: list[Companion] = []
        self._patience = Timer(LEAVE_S, self._exit_without_database)
        """From the order to stop to the end of the loop."""
        self._patience.daemon = True

    def run(self) -> int:
        """Start, lead, leave; the exit code."""
        stops = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored where nohup started it
            stops.append(signal.SIGHUP)
        for number in stops:
            signal.signal(number, lambda *_: self._stop())
        self._lock_home()
        secret = cluster_secret(self._home)
        engine = self._open_database()
        store = Store(engine, archive=self._settings.on_old_runs == "archive")
        self._lead(store)
        context = self._patiently(store.context)
        cluster_id = context["cluster_id"]
        address = self._start_broker(context)
        storage = self._open_datastore(cluster_id, context)
        pools = self._settings.all_pools
        accounts = {pool.name: account for pool in pools if (account := account_of(pool)) is not None}
        open_staging(accounts.values(), storage.access.address)

        def access_of(key_name: str) -> AccessFile:
            return self._access(cluster_id, address, secret, key_name)

        try:
            public_key, visitors = open_visitors(self._settings, self._home, cluster_id, access_of)
        except KeyToolFailed as error:
            raise Problem(f"the boss has no key for its VMs: {error}") from None
        clouds = open_clouds(
            self._settings,
            self._home,
            cluster_id,
            access_of,
            self._tied,
            self._keep_dirs,
            public_key,
            accounts=accounts,
        )
        labels = {pool.name: pool.labels for pool in pools}
        hook = Hook("" if self._tied else self._settings.hook_command, cluster_id)

        def make_calls(put: Callable[[Event], None]) -> Calls:
            return Calls(storage, clouds, labels, put, hook, store.leads, visitors)

        write_access(self._home.client_access, self._access(cluster_id, address, secret, CLIENT_KEY_NAME))
        config = self._config(storage.access)
        if store.value_bytes is not None:
            config = msgspec.structs.replace(config, max_value_bytes=store.value_bytes)
        self._runtime = Runtime(
            store, config, cluster_id, secret, address, make_calls, self._embedded, self._clock,
            self._home.boss_numbers,
        )  # fmt: skip
        self._write_pid(address)
        if self._stopping:
            self._runtime.stop()
        self._start_companions()
        try:
            code = self._runtime.run()
        finally:
            self._leave(store, clouds, storage)
        return code

    def _stop(self) -> None:
        if not self._stopping:
            self._stopping = True
            self._patience.start()
        if self._runtime is not None:
            self._runtime.stop()

    def _exit_without_database(self) -> None:
        """Leave in the middle of a statement that a stopped database server does not answer. As after a crash, the next
        boss finds what was committed."""
        log.warning("left without the database, which does not answer: the next boss waits for this one's silence")
        self._end_own_processes()
        self._home.boss_pid.unlink(missing_ok=True)
        logging.shutdown()
        os._exit(DONE)

    def _end_own_processes(self) -> None:
        for companion in self._companions:
            companion.stop()
        if self._embedded is not None:
            self._embedded.stop()

    def _start_companions(self) -> None:
        """The processes beside this one."""
        home, settings = self._home, self._settings
        if (settings.event_command or settings.event_url) and not self._tied:
            code = "from ecloud.cli.event_sender import main; main()"
            self._companions.append(Companion("events", code, (), home.path))
        if self._monitor_port is not None:
            code = "from ecloud.cli.main import ecloud; ecloud()"
            self._companions.append(
                Companion(
                    "monitor", code, ("monitor", "--port", str(self._monitor_port), "--json", "--tied"), home.path
                )
            )
            Thread(target=_tell_monitor, args=(home,), daemon=True).start()

    # --- parts, in order ----------------------------------------------------------------------------

    def _lock_home(self) -> None:
        self._lock_file = os.open(self._home.boss_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        told = False
        while True:
            try:
                fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                text = f"a boss already runs in {self._home.path}{_who(self._home.boss_pid)}"
                if not self._standby:
                    raise Problem(
                        text, "stop it with python admin.py stop, or wait with --standby", PART_AWAY
                    ) from None
                if not told:
                    print(f"boss: {text}; waiting until it is gone", file=sys.stderr)
                    told = True
            if self._stopping:
                raise Problem("stopped before it could lead", exit_code=DONE)
            time.sleep(0.5)

    def _open_database(self) -> Engine:
        engine = make_engine(database_url(self._settings))

        def open_it() -> Engine:
            if self._settings.database_url:
                require_schema(engine)
            else:
                backup = migrate(engine, self._home.backups)
                if backup:
                    log.info("the tables were migrated; backup of the old file: %s", backup)
            return engine

        try:
            return self._patiently(open_it)
        except SchemaWrong as error:
            raise Problem(error.texts, error.remedy) from None

    def _lead(self, store: Store) -> None:
        holder = f"pid {os.getpid()} on {socket.gethostname()}"
        replace = not self._settings.database_url  # the lock of the home says that no other boss uses its file
        told = False
        while True:
            try:
                self._patiently(lambda: store.lead(holder, self._clock(), replace or self._is_dead_neighbour(store)))
                return
            except AnotherBossLeads as error:
                if not self._standby:
                    raise Problem(error.texts, "stop it first, or wait with --standby", PART_AWAY) from None
                if not told:
                    print(f"boss: {error}; waiting until it is gone", file=sys.stderr)
                    told = True
            if self._stopping:
                raise Problem("stopped before it could lead", exit_code=DONE)
            time.sleep(1.0)

    def _is_dead_neighbour(self, store: Store) -> bool:
        """Whether the leader of record was a process of this machine that is gone: no need to wait for its silence."""
        holder = store.holder()
        words = holder.split()
        if len(words) != 4 or words[3] != socket.gethostname() or not words[1].isdecimal():
            return False
        return not Path(f"/proc/{words[1]}").exists()

    def _start_broker(self, context: Mapping[str, str]) -> BrokerAddress:
        settings = self._settings
        if settings.boss_template and not settings.broker_host and not self._tied:
            noted = context.get("boss_address", "")
            if not noted:
                raise Problem("no boss_address is noted for the broker of BOSS_TEMPLATE", "python admin.py start")
            settings = msgspec.structs.replace(settings, broker_host=noted)
        external = external_broker(settings)
        if external is not None:
            if settings.broker_listen:
                raise Problem(
                    "--listen is for the embedded broker, but BROKER_HOST names another broker", "leave one out"
                )
            return external
        self._embedded = EmbeddedBroker(
            self._home, settings.broker_listen or self._broker_listen, tls=bool(settings.broker_listen)
        )
        return self._embedded.start()

    def _open_datastore(self, cluster_id: str, context: Mapping[str, str]) -> Storage:
        noted, host_key, python, gate = (context.get(name, "") for name in NOTES)
        address = _whole(self._settings.datastore or noted or str(self._home.datastore))
        storage = Storage(self._home, cluster_id, self._settings.datastore_stall_s)
        try:
            storage.use(address, *((host_key, python, gate) if address == noted else ("", "", "")))
        except (DatastoreAway, OSError) as error:
            text = str(error) if isinstance(error, DatastoreAway) else f"{address} cannot be made: {error.strerror}"
            raise Problem(text, "set DATASTORE, or run python admin.py set_datastore DIR") from None
        return storage

    def _access(self, cluster_id: str, address: BrokerAddress, secret: bytes, key_name: str) -> AccessFile:
        return AccessFile(
            cluster_id=cluster_id,
            host=address.host,
            port=address.port,
            key_name=key_name,
            key=derive_key(secret, key_name).hex(),
            user=address.user,
            password=address.password,
            ca=address.ca,
            tls=address.tls,
        )

    def _config(self, datastore: DatastoreAccess) -> BossConfig:
        settings = self._settings
        return BossConfig(
            heartbeat_s=settings.heartbeat_s,
            lease_s=settings.lease_s,
            lease_margin_s=settings.lease_margin_s,
            stop_grace_s=settings.stop_grace_s,
            retry_backoff_s=settings.retry_backoff_s,
            max_lost_workers=settings.max_lost_workers,
            max_tasks_per_push=settings.max_tasks_per_push,
            keep_runs_s=settings.keep_runs_days * 86400.0,
            datastore=datastore,
            usual_datastore=_whole(settings.datastore or str(self._home.datastore)),
            shell=settings.shell,
            pools=tuple(_pool(pool, settings) for pool in settings.all_pools),
            worker_settings={
                "stop_grace_s": settings.stop_grace_s,
                "cache_mb": settings.cache_mb,
                "stall_s": settings.datastore_stall_s,
            },
            transfer_lanes=settings.transfer_lanes,
            vm_hours_per_day=settings.vm_hours_per_day,
            vm_hours_per_run=settings.vm_hours_per_run,
            boot_deadline_s=settings.vm_boot_s,
            pending_s=settings.vm_pending_s,
            adoption_grace_s=settings.vm_unanswered_s,
            orphan_grace_s=max(settings.vm_orphan_s, settings.lease_s),
            list_vms_every_s=min(10.0, 2 * settings.heartbeat_s),
            sweep_every_s=min(600.0, 10 * settings.lease_s),
        )

    def _write_pid(self, address: BrokerAddress) -> None:
        about = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.time(), "broker": str(address)}
        self._home.boss_pid.write_text(json.dumps(about))

    def _leave(self, store: Store, clouds: Mapping[str, Provider], storage: Storage) -> None:
        self._patience.cancel()
        if self._end_vms:
            self._end_all(clouds)
        for cloud in clouds.values():
            cloud.close()
        self._end_own_processes()
        if self._tied and isinstance(storage.publisher, DirectoryDatastore):
            storage.publisher.tidy()
        resigning = Timer(LEAVE_S, self._exit_without_database)
        resigning.daemon = True
        resigning.start()
        try:
            store.resign()
        except (StoreAway, CommitRefused):
            log.warning("the database does not answer: the next boss waits until this one's lease ends")
        resigning.cancel()
        self._home.boss_pid.unlink(missing_ok=True)
        log.info("left")

    def _end_all(self, clouds: Mapping[str, Provider]) -> None:
        for cloud in {type(cloud): cloud for cloud in clouds.values()}.values():  # one finds the VMs of all its pools
            try:
                left = cloud.end_all(self._settings.end_vms_s)
            except (TryLater, CredentialsWrong) as error:
                log.error("VMs may be left running: %s", error)
            else:
                for vm in left:
                    waited_s = self._settings.end_vms_s
                    log.error("VM %s is left %s: it did not end in %.0f s", vm.cloud_id, vm.state.value, waited_s)

    def _patiently(self, action: Callable[[], _T]) -> _T:
        """Again and again while the database is away, saying so once."""
        told = False
        while True:
            try:
                return action()
            except (StoreAway, DatabaseAway) as error:
                if not self._settings.database_url:
                    raise
                if not told:
                    print(f"boss: waiting for the database: {error}", file=sys.stderr)
                    log.error("waiting for the database: %s", error)
                    told = True
            if self._stopping:
                raise Problem("stopped while it waited for the database", exit_code=DONE)
            time.sleep(WAIT_S)


def _tell_monitor(home: Home) -> None:
    """Print where the pages are, once they are there."""
    for _ in range(MONITOR_LOOKS):
        time.sleep(0.2)
        try:
            url = json.loads(home.monitor_address.read_text())["url"]
        except (OSError, ValueError, KeyError):
            continue
        print(f"monitor: {url}", flush=True)
        return
    log.error("the monitor does not start: see %s", home.path / "monitor.log")


def _whole(address: str) -> str:
    """An address as it is noted."""
    return address if is_ssh(address) else f"dir:{directory_of(address).absolute()}"


def _pool(pool: PoolSettings, settings: Settings) -> PoolConfig:
    return PoolConfig(
        pool.name,
        size_of(pool),
        pool.minimum,
        pool.maximum,
        pool.labels,
        settings.idle_vm_s,
        pool.spillover,
        BOOT_S[pool.cloud],
        cloud=pool.cloud,
        tells_room=pool.cloud != "local",
        visited=pool.cloud == "opennebula",
        gets_code=pool.code == "ssh",
        queues=pool.cloud == "slurm",
        container=pool.container,
        lives_s=(seconds_of(pool.time_limit) if pool.time_limit else None) or math.inf,
    )


def _who(path: Path) -> str:
    try:
        about = json.loads(path.read_text())
        since = when(about["started"])
        return f" (pid {about['pid']} on {about['host']}, since {since})"
    except (OSError, ValueError, KeyError):
        return ""


if __name__ == "__main__":
    main()
