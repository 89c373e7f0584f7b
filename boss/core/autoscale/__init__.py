"""Decides how many VMs each pool should have, and follows every VM from intent to end. Pure."""
