"""`python -m cw.master`: the boss of a cluster."""

from boss.__main__ import main

if __name__ == "__main__":
    main()
