"""Names and texts of all invariants: those that always hold, and those that hold at the end.

`docs/guarantees.md` lists the guarantee behind each; tests compare that page with this table.
"""

from __future__ import annotations

INVARIANTS: dict[str, str] = {
    # Tasks and attempts
    "legal-moves": "tasks and attempts move only along the tables of ecloud/model/tasks.py",
    "dependencies": "no attempt is assigned before its dependencies ended as required, or are held by the worker",
    "chain-start": "a task starts only after its dependencies succeeded: as recorded, or as seen by the worker there",
    "chain-record": "a task is recorded as succeeded only after its dependencies are",
    "chain-cost": "a chained attempt whose predecessor did not succeed uses up no retry of its task",
    "one-attempt": "no attempt is assigned while an earlier one of the task counts as running",
    "one-outcome": "an attempt has one recorded outcome, and it never changes",
    "true-outcome": "a recorded outcome is one that a worker reported for exactly this attempt",
    "outcome-kept": "an attempt that has an outcome is not lost while its worker is on duty",
    "elements": "each element of an array is made once, its array ends after all of them, and its counts are correct",
    "extend": "a push that extends a run changes only tasks that it names, and all of these are in the run",
    "accepted": "the database refuses no batch, unless it is at fault itself",
    "push-once": "a push is accepted once, however often it is sent",
    # Files
    "files-whole": "a task that succeeded has all its files under their final names, from its recorded attempt",
    "published-by-record": "files get their final names only from attempts whose outcome is recorded",
    "chain-inputs": "the inputs of a chained attempt come from attempts that are recorded as successes",
    "call-values": "a call starts with all recorded values of the calls that it needs, and only its worker gets them",
    "promised-there": "the files that a task requires from its dependencies exist when it starts",
    # Messages
    "write-then-speak": "no message is sent before its facts are committed",
    "wanted": "no valid push is rejected",
    # Leadership
    "one-boss": "a deposed boss changes nothing",
    # Workers
    "ordered": "a worker starts only attempts that were committed for it, each once",
    "fenced": "no attempt starts after it was recorded as returned or lost",
    "resources": "a worker never uses more than it has, and assigns a GPU to one attempt at a time",
    "machine": "the workers of one machine together never use more than it has",
    "prepared": "no task starts in a worker process before the init tasks of its run succeeded there",
    "access": "a worker or client gets certificates for its own key only, and accesses the datastore with a valid one",
    "outlived": "no attempt is given to a worker that has less time left than its task states as its run time",
    "lease": "no worker is recorded as lost while a lease that the boss confirmed is valid",
    "killed": "a worker that an operator killed gets no further attempt, and leaves",
    "shutdown": "an attempt that SIGTERM ended while its worker left, as the boss knew, is returned and costs nothing",
    "inbox": "the messages that wait in a boss's inbox stay within its limits",
    "suspects": "a task fails for lost workers only after the allowed number, and alone on the last of them",
    "patience": "silence while the boss had no connection to the broker counts against no worker",
    "history": "after a restore of the database no outcome counts of an attempt whose order the database lacks",
    # Machines
    "other-vm": "a VM of a history that a restored database lacks is not taken for another VM of its number",
    "intent": "no VM is requested without a committed intent",
    "maximum": "there are never more VMs of a pool than its maximum allows",
    "owned": "after the faults heal every VM that exists is owned by a row that is not gone",
    "no-harm": "no VM that runs work is ended, except on a user's request or after it was given up",
    "turn": "no VM is withdrawn for lack of a place while its cloud places others before it",
    "queued": "no VM is given up while its cloud queues it, if that cloud queues jobs",
    "vanished": "no VM that exists is recorded as gone, also if its cloud did not list it for a while",
    "grace": "a VM without an intent is ended only after its grace period",
    "budget": "no VM starts automatically while the budget of the day, or of every unfinished run, is used up",
    "hold": "no VM of a pool starts while an operator holds the pool",
    "identity": "a VM is identified by its number and boot nonce, and never by its address",
    # At the end
    "settles": "after the faults heal everything ends: tasks, requests, spools, stages",
    "floor": "after the faults heal the fleet is back at its floor",
    "books": "a VM's life is that of the cloud's own list, and the parts of the ledger add up to it exactly",
    "counts": "after the faults heal the boss counts the tasks of each run as the database does",
    "memory": "after the faults heal the boss keeps only unfinished work in memory",
}


class Violation(AssertionError):
    """A broken invariant. The text describes the violation; `invariant` names the invariant."""

    def __init__(self, invariant: str, text: str) -> None:
        assert invariant in INVARIANTS, f"there is no invariant {invariant}"
        super().__init__(f"[{invariant}] {text}")
        self.invariant = invariant
