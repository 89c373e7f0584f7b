"""The simulated datastore: stages and final files by name, each with the identity of its content.

Follows the contract of `datastore.port`, with its weakest promise: a file that is no longer staged but stands under its
final name *with its size* counts as promoted. All sizes are equal here: no wrong file is refused by chance.
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
"""Who the boss is to the datastore, whichever of them it is."""


class Datastore:
    """One datastore for all."""

    def __init__(self, world: World, faults: Faults) -> None:
        self.world = world
        self.faults = faults
        self.staged: dict[str, dict[str, str]] = {}
        self.final: dict[str, str] = {}
        self.big: dict[str, int] = {}
        """Bytes of those that take time to fetch, and are kept by who did."""
        self.moved_bytes = 0
        """What was fetched of them."""
        self.away = False
        self.full = False
        self.parted: set[str] = set()
        """Who does not reach it, though others do."""
        self.on_published: Callable[[str, str], None] = lambda path, content: None
        """Called with a final name and the identity of what is to stand under it."""

    def fill_up(self, seconds: float) -> None:
        """No room for a while: nothing can be stored or published."""
        if not self.full:
            self.full = True
            self.world.tell("datastore", f"full for {seconds:.1f} s")
            self.world.after(seconds, self.make_room)

    def make_room(self) -> None:
        """There is room again."""
        self.full = False

    def go_away(self, seconds: float) -> None:
        """Not to be reached for a while."""
        if not self.away:
            self.away = True
            self.world.tell("datastore", f"away for {seconds:.1f} s")
            self.world.after(seconds, self.come_back)

    def come_back(self) -> None:
        """To be reached again."""
        if self.away:
            self.away = False
            self.world.tell("datastore", "back")

    def require(self, who: str) -> None:
        """Raises `DatastoreAway` where `who` can't reach it."""
        if self.away or who in self.parted:
            raise DatastoreAway("the datastore can't be reached")

    def _require_room(self) -> None:
        if self.full:
            raise DatastoreAway("the datastore is full")

    def store(self, who: str, stage: str, paths: Sequence[str], content: str) -> tuple[ManifestEntry, ...]:
        """Stage files of that content; the manifest."""
        self.require(who)
        self._require_room()
        self.staged.setdefault(stage, {}).update(dict.fromkeys(paths, content))
        return tuple([ManifestEntry(path, SIZE, content) for path in paths])

    def has(self, who: str, path: str) -> bool:
        """Whether a file is published under that name."""
        self.require(who)
        return path in self.final

    def fetch(self, paths: Iterable[str], kept: set[str]) -> tuple[int, int]:
        """Bytes of the big ones, and how many of them had to be moved since they were not `kept` yet: they are now."""
        sizes = {path: self.big[path] for path in paths if path in self.big}
        moved = sum(size for path, size in sizes.items() if path not in kept)
        kept.update(sizes)
        self.moved_bytes += moved
        return sum(sizes.values()), moved

    def existing(self, paths: Iterable[str]) -> frozenset[str]:
        """Those of the names that are published."""
        self.require(BOSS)
        return frozenset(path for path in paths if path in self.final)

    def stages(self) -> tuple[str, ...]:
        """All stages."""
        self.require(BOSS)
        return tuple(sorted(self.staged))

    def drop(self, stages: Iterable[str]) -> None:
        """Remove stages; nothing happens where there is none."""
        self.require(BOSS)
        for stage in stages:
            if self.staged.pop(stage, None) is not None:
                self.world.tell("datastore", f"drops stage {stage}")

    def promote(self, promotions: Iterable[Promote]) -> list[str | None]:
        """Move what is staged to final names. May be cut in the middle."""
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
        """Put it under its final name."""
        self.on_published(path, content)
        self.final[path] = content
