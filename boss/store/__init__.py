"""The tables that the leading boss writes: statements, writing, loading."""
