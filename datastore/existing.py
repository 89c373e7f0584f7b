"""Tells which names of a datastore lead to a file or directory. A link counts as its target."""

from __future__ import annotations

import posixpath

from datastore.port import Reader

MAX_LINKS = 8
"""Longest chain of links that is followed."""


def existing(datastore: Reader, names: list[str]) -> frozenset[str]:
    """Those of `names` that exist. A link that dangles, or leads out of the datastore, does not.

    Raises as `Reader.stat`.
    """
    found = set()
    leads_to = {name: name for name in names}
    for _ in range(MAX_LINKS):
        asked = sorted(set(leads_to.values()))
        entries = dict(zip(asked, datastore.stat(asked))) if asked else {}
        further: dict[str, str] = {}
        for name, at in leads_to.items():
            entry = entries[at]
            if entry is not None and entry.kind != "link":
                found.add(name)
            elif entry is not None:
                target = posixpath.normpath(posixpath.join(posixpath.dirname(at), entry.sha256))
                if not target.startswith(("/", "../")) and target not in (".", ".."):
                    further[name] = target
        leads_to = further
    return frozenset(found)
