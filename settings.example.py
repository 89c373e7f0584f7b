"""All settings with their defaults. Copy this file to settings.py and change what you need.

Without any setting, `python -m boss` uses SQLite, an embedded broker and workers on this machine.
"""

# The boss's directory: secrets, log, embedded database and broker. The environment variable ECLOUD_HOME takes
# precedence.
HOME = "~/.ecloud"

# --- parts ---------------------------------------------------------------------------------------

# SQLAlchemy URL of an existing MySQL or MariaDB database, e.g. "mysql+pymysql://ecloud:secret@localhost/ecloud".
# Empty: SQLite in HOME.
DATABASE_URL = ""

# Host of an MQTT broker that all workers reach, e.g. Mosquitto. Empty: an embedded broker, only for this machine.
BROKER_HOST = ""
# Without BROKER_HOST: an address of this machine (ADDRESS or ADDRESS:PORT) at which workers and clients on other
# machines reach the embedded broker, with TLS and the access files of `admin.py invite`. Example: "10.0.0.1".
BROKER_LISTEN = ""
BROKER_PORT = 1883
BROKER_USER = ""
BROKER_PASSWORD = ""
# Use TLS. BROKER_CA: path of the certificate authority's certificate (PEM). Empty: the authorities of the system.
BROKER_TLS = False
BROKER_CA = ""

# The datastore: a directory that the boss and all workers see. Empty: HOME/datastore.
DATASTORE = ""

# Pools: the workers that the boss may start. Empty: workers on this machine, one per core, and one with all cores
# for larger tasks.
# A pool: {"name": "local", "cloud": "local", "minimum": 0, "maximum": 4, "cpus": 1, "memory_mb": 0, "gpus": 0,
#          "labels": [], "spillover": False, "template": ""}; cpus 0 and memory_mb 0 mean those of the machine.
# VMs of an OpenNebula: {"name": "big", "cloud": "opennebula", "template": "worker", "maximum": 20, "cpus": 4,
#          "memory_mb": 7500}; `template`: a name or id; cpus and memory_mb: those of one VM of the template.
# "code": "image": the image contains ECLOUD in /opt/ecloud; "ssh": the image has sshd and Python 3.10 or later, and
# the boss installs ECLOUD by SSH, as "ssh_user" ("root") at "ssh_port" (22).
# Jobs of a Slurm: {"name": "hpc", "cloud": "slurm", "partition": "", "account": "", "qos": "", "maximum": 50,
#          "cpus": 8, "memory_mb": 16000, "gpus": 0, "time_limit": "04:00:00", "backlog": 10, "sbatch_options": [],
#          "worker_init": "", "login": ""}; docs/slurm.md explains each field. "provider" is another name for "cloud".
# Workers on listed hosts: {"name": "lab", "cloud": "ssh_hosts", "hosts": ["user@host1", "user@host2:2222", "local"],
#          "slots": 1, "cpus": 8, "memory_mb": 16000, "ssh_options": ["-i", "/home/me/.ssh/lab"]}; see docs/hosts.md.
# "python": "3.12": the Python version for Python calls, empty for the version of this machine; see docs/python.md.
# "container": "/images/debian" or {"image": "debian:12", "runtime": "podman", "binds": ["/data"]}: the container for
# the commands of tasks that name none; see docs/tasks.md.
# Workers on this machine under another account, if the boss runs as root: {"name": "here", "maximum": 8,
# "run_as": "ecloud-tasks"}; see docs/production.md.
POOLS = ()
# Directory for the homes of such workers; only root may write to it.
RUN_AS_HOME = "/var/lib/ecloud-workers"

# The OpenNebula of those pools: its XML-RPC address, e.g. "http://HOST:2633/RPC2", and a user that may use their
# templates. The boss uses the password only to get tokens, which last an hour and are renewed.
OPENNEBULA_URL = ""
OPENNEBULA_USER = ""
OPENNEBULA_PASSWORD = ""
# For https: path of the certificate authority's certificate (PEM). Empty: the authorities of the system. And the URL of
# a proxy. Empty: that of the environment (https_proxy).
OPENNEBULA_CA = ""
OPENNEBULA_PROXY = ""

# Templates of the broker's and the datastore's machine, if these are VMs too: `admin.py start` finds the running VM of
# each and stores its address; `start --create` creates it if none runs. ECLOUD never ends these VMs.
# The broker's machine, instead of BROKER_HOST.
BOSS_TEMPLATE = ""
# The datastore's machine, instead of DATASTORE. DATASTORE_AT is its address as for set_datastore, with * for the host:
# "ecloud@*:/srv/ecloud".
DATASTORE_TEMPLATE = ""
DATASTORE_AT = ""

# The POSIX shell, with options, that runs a task's commands: "/bin/bash -euo pipefail". A task's field `shell` takes
# precedence.
SHELL = "/bin/sh"

# --- times, in seconds ---------------------------------------------------------------------------

# How often a worker reports its attempts. Lost messages are repeated within this time. If there are more than 750
# workers, each reports less often, but at least three times within LEASE_S.
HEARTBEAT_S = 5.0
# How long a worker may be silent. After this and LEASE_MARGIN_S the boss runs its tasks elsewhere.
LEASE_S = 60.0
LEASE_MARGIN_S = 5.0
# Between TERM and KILL when a task is stopped.
STOP_GRACE_S = 10.0
# Before the first retry of a task; doubled for each further retry, up to 60 s.
RETRY_BACKOFF_S = 1.0
# How long a VM may be idle before the boss ends it.
IDLE_VM_S = 60.0
# How long a VM may take until its worker joins; how long it may stay PENDING (without a host or an address) before the
# boss gives it up and tries another pool.
VM_BOOT_S = 300.0
VM_PENDING_S = 120.0
# After a start whose answer was lost: how long the boss waits for that VM to appear in the cloud's list before it
# requests another VM. It must exceed the time limits of a start (30 s) and of a list (30 s).
VM_UNANSWERED_S = 90.0
# How long an orphan may run before the boss ends it: a VM with this cluster's id that no row of the database owns.
VM_ORPHAN_S = 120.0
# How long `stop --vms` waits until the clouds list no VM of this cluster.
END_VMS_S = 900.0
# VM-hours in any 24 hours after which the boss starts no VM automatically. 0: no limit. VMs that an operator requests
# are always started.
VM_HOURS_PER_DAY = 0.0
# VM-hours that the tasks of one run may use. Then the boss starts no VM for the run; its running tasks continue.
# `push_tasks.py --vm_hours H` sets another limit for one run. 0: no limit. docs/scaling.md defines what counts.
VM_HOURS_PER_RUN = 0.0
# A shell command for operator alerts: VMs that do not end, a pool whose boots fail, an exhausted budget, a datastore
# that has not answered for long. It gets the text on standard input and in ECLOUD_TEXT, and the cause in ECLOUD_CAUSE.
# It runs at most once an hour for each cause and is killed after 60 s.
# Example: "mail -s ecloud admin@example.org". Empty: only `status`, `doctor` and the boss's log show alerts.
HOOK_COMMAND = ""
# A shell command for each event: a run ended, the first failure of a run, a pool closed, a budget exhausted, a VM lost.
# It gets the event as JSON on its standard input, and ECLOUD_EVENT, ECLOUD_RUN and ECLOUD_TEXT (docs/monitoring.md).
EVENT_COMMAND = ""
# A web address that gets each event by POST, signed with EVENT_SECRET (at least 16 characters). Failed requests are
# repeated for a day.
EVENT_URL = ""
EVENT_SECRET = ""
# How long a worker that the boss started continues without a boss before it exits.
BOSS_GONE_EXIT_S = 3600.0

# --- limits --------------------------------------------------------------------------------------

# The boss refuses larger task lists and names this setting.
MAX_TASKS_PER_PUSH = 2_000_000

# A task that may kill its workers (memory, a reboot, pkill) fails after this many workers were lost while it ran on
# them; its last try runs alone. Workers that were ordered to leave, or that the boss ended, do not count. 0: no limit.
MAX_LOST_WORKERS = 3
# Size of a worker's cache of files that it fetched over SSH, for later tasks with the same requirements; at most half
# of the free disk space. 0: no cache. A datastore that is a directory needs none.
CACHE_MB = 10_000.0
# Number of workers that transfer files over SSH in parallel; the others wait for their turn. Keep it below the
# MaxStartups of the datastore's sshd (10 by default).
TRANSFER_LANES = 8
# A connection to the datastore that transfers nothing for this long is closed and opened again.
DATASTORE_STALL_S = 60.0
# Runs that ended this many days ago are removed: "archive" keeps one row of counts, "drop" keeps nothing.
KEEP_RUNS_DAYS = 30.0
ON_OLD_RUNS = "archive"

# DEBUG, INFO, WARNING or ERROR.
LOG_LEVEL = "INFO"
