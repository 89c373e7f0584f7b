"""Python functions on the cluster: an executor, futures that outlive the program, and the interfaces of other
libraries.

Turns functions into calls (docs/protocol.md) and communicates with the boss like any client. Owns no state of the
cluster.
"""
