"""The actions of `admin.py` and `push_tasks.py`, and their output."""
