"""The datastore as seen from outside: bytes by name below one root. A leaf: imports nothing of ECLOUD."""
