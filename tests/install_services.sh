#!/bin/sh
# Installs the servers that tests need and lack, as root by apt; else says what cannot be tested.
PATH="$PATH:/usr/sbin:/usr/local/sbin:/sbin"
missing=""
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
need mosquitto mosquitto
command -v mariadbd >/dev/null 2>&1 || need mysqld mariadb-server
need sshd openssh-server
need rsync rsync
need bwrap bubblewrap
need ch-run charliecloud
need slurmctld slurm-wlm
need slurmdbd slurmdbd
need munged munge
need systemd-analyze systemd
need redis-server redis-server
need prometheus prometheus
need chromium chromium
# CPython's own tests of executors, where its Python is the machine's.
[ -e /usr/lib/python3.11/test/test_concurrent_futures.py ] || [ ! -d /usr/lib/python3.11 ] || missing="$missing libpython3.11-testsuite"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  echo "installing$missing"
  export DEBIAN_FRONTEND=noninteractive
  # Nothing is to be started by its installation: tests run servers of their own.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' > $policy && chmod +x $policy
    trap 'rm -f $policy' EXIT
  fi
  apt-get update -qq >/dev/null && apt-get install -y -qq --no-install-recommends $missing >/dev/null && exit 0
  echo "could not install$missing" >&2
  exit 1
fi
echo "not installed:$missing; tests that need them will fail. As root: apt-get install$missing" >&2
[ -z "${CI:-}" ]
