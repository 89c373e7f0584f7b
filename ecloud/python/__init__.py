"""Python functions on the cluster: an executor, futures that outlive the program, and what other libraries call them.

Turns functions into calls (docs/protocol.md) and speaks with the boss as any client does. Owns no state of the cluster.
"""
