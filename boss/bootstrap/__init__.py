"""Turns a bare machine into a worker: start scripts, the code bundle, and the visit over SSH that brings it."""
