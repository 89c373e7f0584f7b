"""Start and end machines: one contract (`provider.py`), one implementation per kind of machine."""
