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
# Without BROKER_HOST: an address of this machine, with or without :PORT, at which workers and clients of other
# machines reach the boss's own broker, with TLS and a password that `admin.py invite` gives: "10.0.0.1".
BROKER_LISTEN = ""
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
# "code": "image": its image has this code in /opt/ecloud; "ssh": it has sshd and a Python of 3.10 or later, and the
# boss brings the rest, as "ssh_user" ("root") at "ssh_port" (22).
# Jobs of a Slurm: {"name": "hpc", "cloud": "slurm", "partition": "", "account": "", "qos": "", "maximum": 50,
#          "cpus": 8, "memory_mb": 16000, "gpus": 0, "time_limit": "04:00:00", "backlog": 10, "sbatch_options": [],
#          "worker_init": "", "login": ""}; docs/slurm.md says what each means. "provider" is another name for "cloud".
# Workers on listed hosts: {"name": "lab", "cloud": "ssh_hosts", "hosts": ["user@host1", "user@host2:2222", "local"],
#          "slots": 1, "cpus": 8, "memory_mb": 16000, "ssh_options": ["-i", "/home/me/.ssh/lab"]}; see docs/hosts.md.
# "python": "3.12": the version that its workers run Python calls with, empty for this machine's; see docs/python.md.
# Workers of this machine under another account, where the boss is root: {"name": "here", "maximum": 8,
# "run_as": "ecloud-tasks"}; see docs/production.md.
POOLS = ()
# Where such workers have their homes: a directory that only root may change.
RUN_AS_HOME = "/var/lib/ecloud-workers"

# The OpenNebula of those pools: its XML-RPC address, e.g. "http://HOST:2633/RPC2", and a user that may use their
# templates. The password is used to get tokens of an hour, which are renewed.
OPENNEBULA_URL = ""
OPENNEBULA_USER = ""
OPENNEBULA_PASSWORD = ""
# Path of the authority's certificate (PEM) for https, empty for the system's authorities; and a proxy's URL, empty for
# what the environment says (https_proxy).
OPENNEBULA_CA = ""
OPENNEBULA_PROXY = ""

# Templates of the machines that the cluster rests on, where these are VMs too: `admin.py start` finds the one VM of
# each that runs and notes its address; `start --create` makes it if there is none. Nothing ever ends them.
# The broker's machine, in place of BROKER_HOST.
BOSS_TEMPLATE = ""
# The datastore's, in place of DATASTORE; DATASTORE_AT is its address as for set_datastore, with * for the host:
# "ecloud@*:/srv/ecloud".
DATASTORE_TEMPLATE = ""
DATASTORE_AT = ""

# The POSIX shell, with options, that runs a task's commands: "/bin/bash -euo pipefail". A task's field `shell` wins.
SHELL = "/bin/sh"

# --- times, in seconds ---------------------------------------------------------------------------

# How often a worker reports what it holds. A lost message is repeated within this time.
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
# Limits of waiting: how long a VM may take until its worker joins; how long it may wait
# at its cloud for a host or an address before it is withdrawn.
VM_BOOT_S = 300.0
VM_PENDING_S = 120.0
# Where the answer to a start was lost: how long the cloud may still make that VM before another is asked for in its
# place. Longer than OpenNebula is given for an answer (30 s) and for the list that tells (30 s).
VM_UNANSWERED_S = 90.0
# How long a VM that carries this cluster's id and belongs to nothing that the boss knows may run before it is ended.
VM_ORPHAN_S = 120.0
# How long `stop --vms` waits until the clouds' own lists are empty.
END_VMS_S = 900.0
# VM-hours in any 24 hours after which none is started automatically; 0: no limit. What a person asks for is started.
VM_HOURS_PER_DAY = 0.0
# VM-hours that the tasks of one run may take, after which none is started for its work; its running tasks continue.
# `push_tasks.py --vm_hours H` asks for another limit for its run. 0: no limit. docs/scaling.md says what counts.
VM_HOURS_PER_RUN = 0.0
# A shell command that tells an operator what needs one: VMs that do not end, a pool whose boots fail, a
# budget that is used up, a datastore that is long away. It gets the text on its standard input and in ECLOUD_TEXT, what
# it is about in ECLOUD_CAUSE; at most once an hour for each cause; after 60 s it is killed.
# E.g. "mail -s ecloud admin@example.org". Empty: `status`, `doctor` and the boss's log tell.
HOOK_COMMAND = ""
# A shell command for each event: a run ended, the first failure of a run, a pool closed, a budget used up, a VM lost.
# It gets the event as JSON on its standard input, and ECLOUD_EVENT, ECLOUD_RUN and ECLOUD_TEXT (docs/monitoring.md).
EVENT_COMMAND = ""
# A web address that each event is sent to by POST, again until it is taken, for a day; signed with EVENT_SECRET (at
# least 16 characters).
EVENT_URL = ""
EVENT_SECRET = ""
# How long a worker that the boss started continues without any boss before it leaves.
BOSS_GONE_EXIT_S = 3600.0

# --- limits --------------------------------------------------------------------------------------

# Larger task lists are refused by name.
MAX_TASKS_PER_PUSH = 2_000_000

# A task fails when this many workers were lost while it ran on them, the last time alone: it may kill them (memory,
# a reboot, pkill). Workers that were ordered to leave or that we ended do not count. 0: it is tried for ever.
MAX_LOST_WORKERS = 3
# What a worker keeps of the files it fetched over SSH, for later tasks that ask for the same; at most half of the disk
# space that is free. 0: nothing. A datastore that is a directory is read directly.
CACHE_MB = 10_000.0
# Workers that move files over SSH at once; the others wait for their turn. Keep it below the MaxStartups of the
# datastore's sshd (10 by default).
TRANSFER_LANES = 8
# A connection to the datastore on which nothing has moved for this long is ended and made again.
DATASTORE_STALL_S = 60.0
# Runs that ended this many days ago are removed: "archive" keeps a line of counts, "drop" keeps nothing.
KEEP_RUNS_DAYS = 30.0
ON_OLD_RUNS = "archive"

# DEBUG, INFO, WARNING or ERROR.
LOG_LEVEL = "INFO"
