"""Benchmarks: each in its own file, printed as ratios of measurements in the same run. `python -m bench [NAME…]`."""
