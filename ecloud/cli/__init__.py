"""The actions behind `admin.py` and `push_tasks.py`, and how they print."""
