"""Clouds: where VMs come from. `provider.py` is what each of them can do; one file per kind."""
