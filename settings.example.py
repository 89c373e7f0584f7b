"""Copy to settings.py and change what differs. Without a settings.py everything below is as it stands here.

With no settings at all, `python -m boss` uses SQLite, a broker of its own and workers on this machine.
"""

# Where the boss keeps its secrets, log, embedded database and broker. The environment's ECLOUD_HOME goes before it.
HOME = "~/.ecloud"

# --- parts ---------------------------------------------------------------------------------------

# SQLAlchemy URL of a MySQL or MariaDB database that exists, e.g. "mysql+pymysql://ecloud:secret@localhost/ecloud".
# Empty: SQLite in HOME.
DATABASE_URL = ""

# An MQTT broker that workers reach, e.g. Mosquitto. Empty: a broker of the boss's own, on this machine only.
BROKER_HOST = ""
BROKER_PORT = 1883
BROKER_USER = ""
BROKER_PASSWORD = ""
# TLS; BROKER_CA is the path of the authority's certificate (PEM), empty for the system's authorities.
BROKER_TLS = False
BROKER_CA = ""

# The datastore: a directory that the boss and all workers see. Empty: HOME/datastore.
DATASTORE = ""

# VMs that the boss may start. Empty: workers on this machine, one per core, and one of all cores for larger tasks.
# A pool: {"name": "local", "cloud": "local", "minimum": 0, "maximum": 4, "cpus": 1, "memory_mb": 0, "gpus": 0,
#          "labels": [], "spillover": False, "template": ""}; cpus 0 and memory_mb 0 mean the machine's own.
# VMs of an OpenNebula: {"name": "big", "cloud": "opennebula", "template": "worker", "maximum": 20, "cpus": 4,
#          "memory_mb": 7500}; `template` is a template's name or id, cpus and memory_mb what one of its VMs can offer.
POOLS = ()

# The OpenNebula of those pools: its XML-RPC address, e.g. "http://HOST:2633/RPC2", and a user that may use their
# templates. The password is used to get tokens of an hour, which are renewed.
OPENNEBULA_URL = ""
OPENNEBULA_USER = ""
OPENNEBULA_PASSWORD = ""
# Path of the authority's certificate (PEM) for https, empty for the system's authorities; and a proxy's URL, empty for
# what the environment says (https_proxy).
OPENNEBULA_CA = ""
OPENNEBULA_PROXY = ""

# What runs the commands of a task.
SHELL = "/bin/sh"

# --- times, in seconds ---------------------------------------------------------------------------

# How often a worker says what it holds. A lost message is made good within this time.
HEARTBEAT_S = 5.0
# How long the boss counts on a worker that it does not hear; then what it held is given to others.
LEASE_S = 60.0
LEASE_MARGIN_S = 5.0
# Between TERM and KILL when a task is stopped.
STOP_GRACE_S = 10.0
# Before the first retry of a task; doubled for each further one, 60 s at most.
RETRY_BACKOFF_S = 1.0
# How long a VM may idle before it is ended.
IDLE_VM_S = 60.0
# VM-hours in any 24 hours after which none is started by itself; 0: no limit. What a person asks for is started.
VM_HOURS_PER_DAY = 0.0
# How long a worker that the boss started goes on without any boss before it leaves.
BOSS_GONE_EXIT_S = 3600.0

# --- limits --------------------------------------------------------------------------------------

# Larger task lists are refused by name.
MAX_TASKS_PER_PUSH = 2_000_000
# What a worker keeps of the files it fetched over SSH, for later tasks that ask for the same; at most half of the disk
# space that is free. 0: nothing. A datastore that is a directory is read directly.
CACHE_MB = 10_000.0
# Workers that move files over SSH at once; the others wait for their turn. Keep it below the MaxStartups of the
# datastore's sshd (10 where nobody changed it).
TRANSFER_LANES = 8
# Runs that ended this many days ago are let go: "archive" keeps a line of counts, "drop" keeps nothing.
KEEP_RUNS_DAYS = 30.0
ON_OLD_RUNS = "archive"

# DEBUG, INFO, WARNING or ERROR.
LOG_LEVEL = "INFO"
