"""How fast: each measure in a file of its own, printed as ratios measured side by side. `python -m bench [NAME…]`."""
