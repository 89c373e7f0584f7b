"""Display and keys of `top`. Pure: takes pictures and keys; returns a screen and orders."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from ecloud.cli.tables import STYLES, WORKER_STYLES, counts, state_bar
from ecloud.model.text import about, amounts, duration, visible
from ecloud.queries.browse import TaskRow
from ecloud.queries.views import RunStatus, Status, VmView, WorkerView

PANES = ("runs", "tasks", "workers", "VMs")
HELP = "↑↓ choose  Tab list  Enter its tasks  w why  l logs  c cancel  r retry  q quit"
HEAD_LINES = 5


class Picture(msgspec.Struct, frozen=True):
    """Data read for one screen. `tasks`: some tasks of the selected run."""

    status: Status
    workers: list[WorkerView]
    vms: list[VmView]
    tasks: list[TaskRow]


class Order(msgspec.Struct, frozen=True):
    """The request of a key: `verb` is why, logs, cancel, retry_failed or quit; for a run, a task of it, a worker or a
    VM."""

    verb: str
    run: str = ""
    task: str = ""
    subject: str = ""


class Screen:
    """State of the display: the selected list and line, a pending confirmation, the last answer."""

    def __init__(self) -> None:
        self.pane = "runs"
        self.run = ""
        """The run whose tasks are listed."""
        self.text: list[str] = []
        """An answer that covers the lists, by line."""
        self.asked: Order | None = None
        """The order that waits for confirmation."""
        self._chosen = dict.fromkeys(PANES, 0)
        self._scrolled = 0
        self.picture: Picture | None = None

    def show(self, picture: Picture) -> None:
        """Show new data."""
        self.picture = picture
        runs = picture.status.runs
        if self.run not in [run.name for run in runs]:
            self.run = runs[0].name if runs else ""
        for pane in PANES:
            self._chosen[pane] = max(0, min(self._chosen[pane], len(self._lines(pane)) - 1))

    def answer(self, text: str) -> None:
        """Show a text until a key is pressed."""
        self.text, self._scrolled = visible(text, lines=True).splitlines() or ["no output"], 0

    # --- keys ---------------------------------------------------------------------------------------

    def on_key(self, key: str) -> Order | None:
        """Handle a key; returns an order, or None if only the screen changed."""
        if self.asked is not None:
            asked, self.asked = self.asked, None
            return asked if key in ("y", "Y") else None
        if key == "q" and not self.text:
            return Order("quit")
        if self.text:
            self._scroll(key)
            return None
        if key in ("up", "k", "down", "j"):
            step = -1 if key in ("up", "k") else 1
            most = len(self._lines(self.pane)) - 1
            self._chosen[self.pane] = max(0, min(most, self._chosen[self.pane] + step))
            if self.pane == "runs":
                self._follow_run()
        elif key == "tab":
            self.pane = PANES[(PANES.index(self.pane) + 1) % len(PANES)]
        elif key in ("enter", "right") and self.pane == "runs":
            self.pane = "tasks"
        elif key in ("escape", "left"):
            self.pane = "runs"
        else:
            return self._order(key)
        return None

    def _scroll(self, key: str) -> None:
        if key in ("down", "j", "up", "k"):
            step = 1 if key in ("down", "j") else -1
            self._scrolled = max(0, min(len(self.text) - 1, self._scrolled + step))
        else:
            self.text = []

    def _follow_run(self) -> None:
        if self.picture is not None and self.picture.status.runs:
            self.run = self.picture.status.runs[self._chosen["runs"]].name

    def _order(self, key: str) -> Order | None:
        task, worker, vm = self.chosen_task, self.chosen_worker, self.chosen_vm
        subject = f"worker/{worker.worker}" if worker else f"vm/{vm.vm_no}" if vm else ""
        if key == "w" and (task or subject):
            return Order("why", self.run if task else "", task.id if task else "", subject)
        if key == "l" and task:
            return Order("logs", self.run, task.id)
        if key in ("c", "r") and self.pane in ("runs", "tasks") and self.run and (task or self.pane == "runs"):
            self.asked = Order("cancel" if key == "c" else "retry_failed", self.run, task.id if task else "")
        return None

    @property
    def chosen_task(self) -> TaskRow | None:
        """The selected line in the list of tasks."""
        tasks = self.picture.tasks if self.picture else []
        return tasks[self._chosen["tasks"]] if self.pane == "tasks" and tasks else None

    @property
    def chosen_worker(self) -> WorkerView | None:
        """The selected line in the list of workers."""
        workers = self.picture.workers if self.picture else []
        return workers[self._chosen["workers"]] if self.pane == "workers" and workers else None

    @property
    def chosen_vm(self) -> VmView | None:
        """The selected line in the list of VMs."""
        vms = self.picture.vms if self.picture else []
        return vms[self._chosen["VMs"]] if self.pane == "VMs" and vms else None

    def _lines(self, pane: str) -> Sequence[object]:
        if self.picture is None:
            return []
        found: dict[str, Sequence[object]] = {
            "runs": self.picture.status.runs, "tasks": self.picture.tasks, "workers": self.picture.workers,
            "VMs": self.picture.vms,
        }  # fmt: skip
        return found[pane]

    # --- drawing ------------------------------------------------------------------------------------

    def draw(self, width: int, height: int, now: float) -> RenderableType:
        """Draw the whole screen."""
        if self.picture is None:
            return Text("reading …", "dim")
        if self.text:
            shown = self.text[self._scrolled : self._scrolled + height - 2]
            return Group(*(Text(line, no_wrap=False) for line in shown), Text("↑↓ scroll, any other key: back", "dim"))
        room = max(6, height - HEAD_LINES - 4)
        machines = min(max(3, room // 4), max(len(self.picture.workers), len(self.picture.vms)) + 3)
        runs = min(max(3, (room - machines) // 3), len(self.picture.status.runs) + 3)
        parts: list[RenderableType] = [*self._head(now), self._runs(runs, width), Text("")]
        parts += [self._tasks(room - runs - machines), Text("")]
        below = self._vms(machines, now) if self.pane == "VMs" else self._workers(machines, now)
        return Group(*parts, below, Text(""), self._foot())

    def _head(self, now: float) -> list[RenderableType]:
        assert self.picture is not None
        status = self.picture.status
        boss = status.boss
        line = Text("boss ", "bold")
        line.append("✓ leads" if boss.leads else "✗ no boss leads", "green" if boss.leads else "bold red")
        line.append(f"   workers {status.workers.get('up', 0):,}", "bold")
        vms = {state: count for state, count in status.vms.items() if count and state != "gone"}
        line.append("   VMs ", "bold").append(", ".join(f"{n} {state}" for state, n in vms.items()) or "none")
        tasks = Text("tasks ", "bold").append_text(counts(status.tasks))
        if status.left_s is not None:
            tasks.append(f"; about {about(status.left_s)} left")
        troubles = [*status.cloud_troubles, *status.troubles, *status.suspects]
        said = Text(visible(troubles[0]), "yellow") if troubles else Text("")
        if len(troubles) > 1:
            said.append(f" and {len(troubles) - 1} more")
        for one in (line, tasks, said):
            one.no_wrap, one.overflow = True, "ellipsis"
        return [line, tasks, said, Text("")]

    def _runs(self, room: int, width: int) -> RenderableType:
        assert self.picture is not None
        table = self._table("runs", ("run", "", "done", "running", "failed", "per s", "left"), right=(2, 3, 4, 5))
        for at, run in self._window("runs", room - 2):
            assert isinstance(run, RunStatus)
            left = about(run.left_s) if run.left_s is not None else ("" if run.left else "ended")
            rate = f"{run.rate_per_s:,.1f}" if run.rate_per_s else ""
            failed = run.states.get("failed", 0)
            table.add_row(
                visible(run.name), state_bar(run.states, max(8, min(30, width // 4))),
                f"{run.total - run.left:,}/{run.total:,}", f"{run.states.get('running', 0):,}",
                Text(f"{failed:,}", "red" if failed else ""), rate, left, style=self._row_style("runs", at),
            )  # fmt: skip
        return table

    def _tasks(self, room: int) -> RenderableType:
        names = (f"tasks of {visible(self.run)}", "state", "reason", "attempts")
        table = self._table("tasks", names, right=(3,), wide=(2,))
        for at, task in self._window("tasks", room - 2):
            assert isinstance(task, TaskRow)
            state = Text(task.state, STYLES.get(task.state, ""))
            table.add_row(
                visible(task.id), state, visible(task.reason), str(task.attempts), style=self._row_style("tasks", at)
            )
        return table

    def _workers(self, room: int, now: float) -> RenderableType:
        names = ("worker", "host", "state", "offers", "runs", "queued", "for")
        table = self._table("workers", names, right=(5,), wide=(3, 4))
        for at, worker in self._window("workers", room - 2):
            assert isinstance(worker, WorkerView)
            state = Text(worker.state, WORKER_STYLES.get(worker.state, ""))
            runs = ", ".join(visible(name) for name in worker.running[:3])
            table.add_row(
                visible(worker.worker), visible(worker.host), state,
                amounts({name: amount for name, amount in worker.resources.items() if amount}),
                Text(visible(worker.trouble), "yellow") if worker.trouble else runs, str(worker.queued),
                duration(max(0.0, now - worker.since)),
                style=self._row_style("workers", at),
            )  # fmt: skip
        return table

    def _vms(self, room: int, now: float) -> RenderableType:
        table = self._table("VMs", ("VM", "pool", "state", "for", "reason"), wide=(4,))
        for at, vm in self._window("VMs", room - 2):
            assert isinstance(vm, VmView)
            table.add_row(
                str(vm.vm_no), visible(vm.pool), vm.state, duration(max(0.0, now - vm.since)), visible(vm.reason),
                style=self._row_style("VMs", at),
            )  # fmt: skip
        return table

    def _table(self, pane: str, columns: Sequence[str], right: Sequence[int] = (), wide: Sequence[int] = ()) -> Table:
        """`right`: columns of numbers; `wide`: columns of long texts, which share the room that the others leave."""
        style = "bold reverse" if pane == self.pane else "bold"
        table = Table(box=None, expand=True, pad_edge=False, header_style=style, padding=(0, 2, 0, 0))
        for at, name in enumerate(columns):
            justify: JustifyMethod = "right" if at in right else "left"
            table.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis", ratio=1 if at in wide else None)
        return table

    def _window(self, pane: str, room: int) -> list[tuple[int, object]]:
        """Return the lines that fit, including the selected one."""
        lines, room = self._lines(pane), max(1, room)
        first = max(0, min(self._chosen[pane] - room // 2, len(lines) - room))
        return list(enumerate(lines))[first : first + room]

    def _row_style(self, pane: str, at: int) -> str:
        return "on grey23" if pane == self.pane and at == self._chosen[pane] else ""

    def _foot(self) -> RenderableType:
        if self.asked is None:
            return Text(HELP, "dim", no_wrap=True, overflow="ellipsis")
        what = f"task {self.asked.task} of run {self.asked.run}" if self.asked.task else f"run {self.asked.run}"
        verb = "Cancel" if self.asked.verb == "cancel" else "Run again the failed tasks of"
        return Text(f"{verb} {visible(what)}? y / n", "bold yellow")
