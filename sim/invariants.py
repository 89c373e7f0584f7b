"""What must always be true, and what must be true at last: each by name. Owns the names, not the looking.

`docs/guarantees.md` says which promise each guards; tests hold that page and this table equal.
"""

from __future__ import annotations

INVARIANTS: dict[str, str] = {
    # Tasks and attempts
    "legal-moves": "tasks and attempts move only along the tables of ecloud/model/tasks.py",
    "dependencies": "no attempt is given before what its task waits for has ended as it must, or is held by its worker",
    "chain-start": "a task starts only after its dependencies succeeded: as recorded, or as seen by the worker there",
    "chain-record": "a task is recorded as succeeded only after its dependencies are",
    "chain-cost": "what becomes of a chained attempt whose predecessor did not succeed costs its task no retry",
    "one-attempt": "no attempt is given while an earlier one of the task is believed to go on",
    "one-outcome": "an attempt has one recorded outcome, and it never changes",
    "true-outcome": "a recorded outcome is one that a worker came to for this very attempt",
    "outcome-kept": "an attempt that came to an outcome is not lost while its worker is on duty",
    "elements": "an element of an array is made once, its array ends after all of them, and its counts are true",
    "push-once": "a push is taken once, however often it is said",
    # Files
    "files-whole": "a task that succeeded has all its files under their final names, from its recorded attempt",
    "published-by-record": "nothing comes under a final name but from an attempt whose outcome is recorded",
    "chain-inputs": "what a chained attempt read of the tasks before it is of the attempts recorded as their successes",
    "call-values": "a call starts with the values that are recorded of the calls it needs, and with all of them",
    "promised-there": "what a task requires of one that it waits for is there when it starts",
    # What is said
    "write-then-speak": "nothing is said that is not committed",
    "wanted": "no push is rejected that a person may make",
    # Who decides
    "one-boss": "a deposed boss changes nothing",
    # Workers
    "ordered": "a worker starts only what was committed for it, once",
    "fenced": "no attempt starts that was recorded as given back or lost before",
    "resources": "a worker never uses more than it has, and gives a GPU to one attempt at a time",
    "machine": "the workers of one machine together never use more than it has",
    "prepared": "no task starts in a worker process before the init tasks of its run succeeded there",
    "access": "a worker touches the datastore only with access of its own that is still good",
    "lease": "no worker is recorded as lost while a lease that the boss answered lives",
    "suspects": "a task fails for lost workers only after as many as allowed, and alone on the last of them",
    "patience": "silence while the boss had no broker counts against no worker",
    "history": "after a restore of the database no outcome counts of an attempt whose order it lacks",
    # Machines
    "intent": "no VM is asked for without a committed intent",
    "maximum": "there are never more VMs of a pool than its maximum allows",
    "owned": "after the faults heal every VM that exists is owned by a row that is not gone",
    "no-harm": "no VM is ended that runs work, but by a person's word or once it was given up",
    "turn": "no VM is withdrawn for want of a place while its cloud places others before it",
    "grace": "a VM that no intent owns is ended only after its grace",
    "budget": "no VM starts by itself while the budget of the day, or of every run that goes on, is used up",
    "identity": "a VM is known by its number and boot nonce, and never by its address",
    # At last
    "settles": "after the faults heal everything ends: tasks, wishes, spools, stages",
    "floor": "after the faults heal the fleet is back at its floor",
    "books": "a VM's life is what the cloud's own list says, and the parts of the ledger add up to it exactly",
    "memory": "after the faults heal the boss holds in memory only what waits",
}


class Violation(AssertionError):
    """Something that must never be. Its text says what; `invariant` names which."""

    def __init__(self, invariant: str, text: str) -> None:
        assert invariant in INVARIANTS, f"there is no invariant {invariant}"
        super().__init__(f"[{invariant}] {text}")
        self.invariant = invariant
