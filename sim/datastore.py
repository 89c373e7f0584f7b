"""The simulated datastore: stages and final files by name, each with the identity of its content.

Implements the contract of `datastore.port` with its weakest promise: if a file is no longer staged but exists under its
final name *with its size*, it counts as promoted. All sizes are equal here, so no wrong file is refused by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from boss.core.model.effects import Promote
from datastore.port import DatastoreAway
from ecloud.model.tasks import ManifestEntry
from sim.faults import Faults
from sim.world import World

SIZE = 100
BOSS = "boss"
"""Name of the boss, any of them, at the datastore."""


class Datastore:
    """One datastore for all peers."""

    def __init__(self, world: World, faults: Faults) -> None:
        self.world = world
        self.faults = faults
        self.staged: dict[str, dict[str, str]] = {}
        self.final: dict[str, str] = {}
        self.big: dict[str, int] = {}
        """Sizes of the files that take time to fetch, and that workers cache, in bytes."""
        self.moved_bytes = 0
        """Bytes of these files that were fetched."""
        self.away = False
        self.full = False
        self.parted: set[str] = set()
        """Peers that do not reach it, though others do."""
        self.on_published: Callable[[str, str], None] = lambda path, content: None
        """Called with a final name and the identity of its new content."""

    def fill_up(self, seconds: float) -> None:
        """Fill the disk for a while: nothing can be stored or published."""
        if not self.full:
            self.full = True
            self.world.tell("datastore", f"full for {seconds:.1f} s")
            self.world.after(seconds, self.make_room)

    def make_room(self) -> None:
        """Free the disk."""
        self.full = False

    def go_away(self, seconds: float) -> None:
        """Become unreachable for a while."""
        if not self.away:
            self.away = True
            self.world.tell("datastore", f"away for {seconds:.1f} s")
            self.world.after(seconds, self.come_back)

    def come_back(self) -> None:
        """Become reachable again."""
        if self.away:
            self.away = False
            self.world.tell("datastore", "back")

    def require(self, who: str) -> None:
        """Raise `DatastoreAway` if `who` cannot reach the datastore."""
        if self.away or who in self.parted:
            raise DatastoreAway("the datastore cannot be reached")

    def _require_room(self) -> None:
        if self.full:
            raise DatastoreAway("the datastore is full")

    def store(self, who: str, stage: str, paths: Sequence[str], content: str) -> tuple[ManifestEntry, ...]:
        """Stage files with that content; return the manifest."""
        self.require(who)
        self._require_room()
        self.staged.setdefault(stage, {}).update(dict.fromkeys(paths, content))
        return tuple([ManifestEntry(path, SIZE, content) for path in paths])

    def has(self, who: str, path: str) -> bool:
        """Return whether a file is published under that name."""
        self.require(who)
        return path in self.final

    def fetch(self, paths: Iterable[str], kept: set[str]) -> tuple[int, int]:
        """Return the bytes of the big files, and how many of these were not in `kept` and had to be fetched. Adds them
        to `kept`."""
        sizes = {path: self.big[path] for path in paths if path in self.big}
        moved = sum(size for path, size in sizes.items() if path not in kept)
        kept.update(sizes)
        self.moved_bytes += moved
        return sum(sizes.values()), moved

    def existing(self, paths: Iterable[str]) -> frozenset[str]:
        """Return the published ones of the names."""
        self.require(BOSS)
        return frozenset(path for path in paths if path in self.final)

    def stages(self) -> tuple[str, ...]:
        """All stages."""
        self.require(BOSS)
        return tuple(sorted(self.staged))

    def drop(self, stages: Iterable[str]) -> None:
        """Remove stages; does nothing for stages that do not exist."""
        self.require(BOSS)
        for stage in stages:
            if self.staged.pop(stage, None) is not None:
                self.world.tell("datastore", f"drops stage {stage}")

    def remove(self, paths: Iterable[str]) -> None:
        """Remove published files and directories."""
        self.require(BOSS)
        for path in paths:
            for name in [name for name in self.final if name == path or name.startswith(f"{path}/")]:
                del self.final[name]

    def promote(self, promotions: Iterable[Promote]) -> list[str | None]:
        """Rename staged files to their final names. May fail in the middle."""
        return [self._promote(item) for item in promotions]

    def _promote(self, item: Promote) -> str | None:
        stage = self.staged.get(item.stage, {})
        cut = self.faults.promotion_cut
        for entry in item.manifest:
            self.require(BOSS)
            self._require_room()
            content = stage.pop(entry.path, None)
            if content is not None:
                self.publish(entry.path, content)
            elif entry.path not in self.final:
                return f"result {entry.path} is neither staged nor published"
            if cut and self.world.fault("promotion_cut", cut):
                self.go_away(self.world.random.uniform(0.1, 5.0))
        self.require(BOSS)
        self.staged.pop(item.stage, None)
        return None

    def publish(self, path: str, content: str) -> None:
        """Store content under its final name."""
        self.on_published(path, content)
        self.final[path] = content
