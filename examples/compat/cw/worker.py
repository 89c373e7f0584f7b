"""`python -m cw.worker [--slurm] [HOST]`: a worker of the boss on HOST."""

from __future__ import annotations

import sys

from cw import slurm_master_host
from ecloud.cli import app
from ecloud.config.settings import load_settings
from ecloud.python.client_thread import access_of
from worker.__main__ import main

if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--slurm"]
    host = slurm_master_host() if "--slurm" in sys.argv else (arguments or ["localhost"])[0]
    app.find_access(load_settings())  # says what is missing
    sys.argv[1:] = [str(access_of(host) or load_settings().home_directory.client_access)]
    main()
