"""Many VMs: the boss's cost of watching 2,000 of them, and how fast it requests 255.

The first benchmark drives the core alone, for a simulated minute: each VM's worker sends its heartbeats, tasks wait and
end, the cloud lists all VMs as often as in production, and garbage is collected as in the boss. The second one uses a
real boss and the tests' simulated cloud, which takes as long for each call as a real OpenNebula took at its best and
worst.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

from bench.report import Figure, seconds
from bench.services import ROOT, NotInstalled
from boss.core.boss import Boss
from boss.core.model.cloud_vms import VmFound
from boss.core.model.config import BossConfig, PoolConfig
from boss.core.model.effects import Effects, ListVms, LoadRun, StartVm
from boss.core.model.events import Event, MessageArrived, RunLoaded, VmsListed, VmStarted
from boss.shell.gc_pauses import Cycles
from ecloud.model import wire
from ecloud.model.tasks import Cause, Outcome, TaskDefinition
from ecloud.model.wire import Envelope
from sim.store import Store

VMS, WARM_S, SIMULATED_S, STEP_S = 2_000, 10, 60, 1.0
WAITING = 10_000
HEARTBEAT_S = 5
ENDS_A_STEP = 100
MOST_CPU_S, MOST_BLOCKED_S = 2.0, 0.05
ASKED = 255
CALL_S = (0.013, 0.047)
"""Duration of one call to a real OpenNebula, best and worst."""
MOST_OVER = 1.10
GIVEN_UP_S = 120.0


def measure() -> list[Figure]:
    """Measure the minute, and the command with both durations of a call."""
    fleet = Fleet()
    fleet.begin()
    fleet.live(WARM_S)
    fleet.cpu_s, fleet.longest_s = 0.0, 0.0
    began = time.monotonic()
    fleet.live(SIMULATED_S)
    figures = [
        Figure(
            f"vms: a minute of {VMS:,}, {WAITING:,} tasks waiting",
            seconds(time.monotonic() - began),
            seconds(fleet.cpu_s),
            "lists, plans, heartbeats, tasks",
            f"less than {MOST_CPU_S:g} s CPU",
            fleet.cpu_s < MOST_CPU_S,
        ),
        Figure(
            "vms: longest time the loop was held",
            f"{fleet.longest_s * 1000:.1f} ms",
            aim=f"at most {MOST_BLOCKED_S * 1000:.0f} ms",
            met=fleet.longest_s <= MOST_BLOCKED_S,
        ),
    ]
    for call_s in CALL_S:
        took_s = _ask(call_s)
        over = took_s / (ASKED * call_s)
        figures.append(
            Figure(
                f"vms: {ASKED} asked of a cloud of {call_s * 1000:.0f} ms a call",
                seconds(took_s),
                result=f"{over:.2f} x its own time",
                aim=f"at most {MOST_OVER:.2f}",
                met=over <= MOST_OVER,
            )
        )
    return figures


class Fleet:
    """A boss with VMs that all work, and the messages to it."""

    def __init__(self) -> None:
        pool = PoolConfig("p", {"cpus": 1.0}, maximum=VMS, boot_s=94.0)
        config = BossConfig(pools=(pool,), starts_a_minute=10 * VMS, starts_under_way=VMS, heartbeat_s=HEARTBEAT_S)
        store = Store()
        store.lead("bench", 0.0, replace=True)
        self.boss = Boss(store.load(), config, 0.0)
        self.now = 1.0
        self._cycles = Cycles()
        self._cycles.begin(self.now)
        self.cpu_s = self.longest_s = 0.0
        self._sessions: dict[str, str] = {}
        self._numbers: dict[str, int] = {}
        self._vms: dict[str, int] = {}
        self._running: deque[tuple[str, int, int]] = deque()
        self._calls: list[object] = []

    def begin(self) -> None:
        """Request all VMs, let them come up, and give them work."""
        self._hello("c", wire.Hello("c", kind="client"), "client")
        tasks = tuple(TaskDefinition(id=f"t{n}", commands=("true",), runtime_s=600.0) for n in range(VMS + WAITING))
        self._tell(self._said("c", wire.SubmitTasks("p", 0, 1, wire.PushOptions(run="r"), tasks), "client"))
        self._tell(self._said("c", wire.Request("q", "instantiate_worker", {"n": VMS}), "client"))
        while len(self._vms) < VMS:
            starts = [call for call in self._calls if isinstance(call, StartVm)]
            self._calls.clear()
            for call in starts:
                name = f"w{call.vm_no}"
                self._vms[name] = call.vm_no
                self._tell(VmStarted(call.vm_no, f"cloud-{call.vm_no}"))
                hello = wire.Hello(name, "worker", resources={"cpus": 1.0}, boot_nonce=call.boot_nonce, home=name)
                self._hello(name, hello, f"vm-{call.vm_no}")
            self.now += 1.0
            self._tell()
        assert len(self._running) >= VMS, "tasks run"

    def live(self, for_s: int) -> None:
        """Send the heartbeats, ends of tasks, lists and plans of ordinary seconds."""
        listed = tuple(VmFound(vm_no, f"cloud-{vm_no}") for vm_no in self._vms.values())
        names = list(self._vms)
        share = len(names) // HEARTBEAT_S
        for step in range(for_s):
            self.now += STEP_S
            beats = names[step % HEARTBEAT_S * share :][:share]
            self._tell(*(self._said(name, wire.Heartbeat(0), f"vm-{self._vms[name]}") for name in beats))
            self._tell(*self._ends())
            self._tell()
            if any(isinstance(call, ListVms) for call in self._calls):
                self._tell(VmsListed("p", listed))
            self._calls.clear()

    def _ends(self) -> list[Event]:
        ended: dict[str, list[Outcome]] = {}
        for _ in range(min(ENDS_A_STEP, len(self._running))):
            name, task_no, number = self._running.popleft()
            ended.setdefault(name, []).append(Outcome(task_no, number, Cause.SUCCESS, exit_code=0))
        return [
            self._said(name, wire.TasksEnded(tuple(outcomes)), f"vm-{self._vms[name]}")
            for name, outcomes in ended.items()
        ]

    def _hello(self, name: str, hello: wire.Hello, key: str) -> None:
        self._tell(MessageArrived(Envelope(wire.PROTOCOL_VERSION, name, "", 0, hello), key))
        self._numbers[name] = 0
        self._tell(self._said(name, wire.Heartbeat(0), key))

    def _said(self, name: str, message: wire.Message, key: str) -> Event:
        self._numbers[name] += 1
        return MessageArrived(
            Envelope(wire.PROTOCOL_VERSION, name, self._sessions[name], self._numbers[name], message), key
        )

    def _tell(self, *events: Event) -> None:
        before_s = time.process_time()
        effects = self.boss.handle(events, self.now)
        self._cycles.after_batch()
        took_s = time.process_time() - before_s
        self.cpu_s += took_s
        self.longest_s = max(self.longest_s, took_s)
        self._hear(effects)

    def _hear(self, effects: Effects) -> None:
        self._calls += effects.calls
        for read in effects.reads:
            if isinstance(read, LoadRun):
                self._tell(RunLoaded(read.token, None))
        for send in effects.sends:
            message = send.envelope.message
            if isinstance(message, wire.Welcome):
                self._sessions[send.envelope.peer] = message.session
            elif isinstance(message, wire.StartTasks):
                self._running += [(send.envelope.peer, order.task_no, order.number) for order in message.attempts]


# --- the command --------------------------------------------------------------------------------------


def _ask(call_s: float) -> float:
    """Return the seconds from the command to its last call, with a boss and a simulated cloud without guests. The cloud
    is that of the tests."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    double, services = importlib.import_module("opennebula_double"), importlib.import_module("services")
    with tempfile.TemporaryDirectory(prefix="ecloud-bench-") as directory:
        cloud = double.OpenNebula(Path(directory) / "cloud").start()
        cloud.add_network(size=250)
        cloud.add_worker_template()
        cloud.networks[0].size = 2 * ASKED
        cloud.faults.unplugged = True
        cloud.faults.slow_s = call_s
        pool = {"name": "big", "cloud": "opennebula", "template": "worker", "maximum": ASKED, "memory_mb": 500}
        daemon = services.Daemon(
            Path(directory) / "daemon",
            OPENNEBULA_URL=cloud.url,
            OPENNEBULA_USER="alice",
            OPENNEBULA_PASSWORD="PASSWORD",
            POOLS=(pool,),
        )
        try:
            daemon.start()
            with daemon.client() as client:
                began = time.monotonic()
                client.request("instantiate_worker", n=ASKED)
                while cloud.calls["template.instantiate"] < ASKED:
                    if time.monotonic() - began > GIVEN_UP_S:
                        raise NotInstalled(f"only {cloud.calls['template.instantiate']} were asked: {daemon.log}")
                    time.sleep(0.005)
                return time.monotonic() - began
        finally:
            daemon.end()
            cloud.end()
