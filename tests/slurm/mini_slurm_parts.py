"""What the tests' SLURM is made of: packages, configuration, names of nodes."""

import os
import shutil
import subprocess
from pathlib import Path

PACKAGES = (
    "munge",
    "slurm-client",
    "slurmctld",
    "slurmd",
    "slurmdbd",
    "slurm-wlm-mysql-plugin",
    "mariadb-server-core",
    "mariadb-client-core",
)
PROGRAMS = ("munged", "sbatch", "slurmctld", "slurmd", "slurmdbd", "sacctmgr", "mariadbd")
NODES = ("node1", "node2")
HOSTS = Path("/etc/hosts")
HOSTS_MARK = "# mini slurm"

SLURM_CONF = """\
ClusterName=mini
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={slurmctld_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A job that is requeued may start again when its old credential has expired (default 120 s).
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0
# The nodes claim more CPUs than this machine may have.
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
# Jobs that can never run are refused rather than left to wait.
EnforcePartLimits=ALL
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters={slurmctld_parameters}
KillWait=5
InactiveLimit=0
PropagateResourceLimits=NONE
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={slurmdbd_port}
AccountingStoragePass={folder}/munge/socket
NodeName=node1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={node1_port} CPUs=4
NodeName=node2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={node2_port} CPUs=4
PartitionName=main Nodes=node[1-2] Default=YES MaxTime=INFINITE PriorityTier=5 PreemptMode=OFF
PartitionName=low Nodes=node[1-2] MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=120
PartitionName=urgent Nodes=node[1-2] MaxTime=INFINITE PriorityTier=9 PreemptMode=OFF
"""
# Without it a preempted job gets SIGTERM in place of the signal that it asked for.
USER_SIGNAL = "preempt_send_user_signal"

SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={slurmdbd_port}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadb_port}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm_acct
"""

MARIADB_INIT = """\
CREATE DATABASE IF NOT EXISTS slurm_acct;
CREATE USER IF NOT EXISTS 'slurm'@'127.0.0.1' IDENTIFIED BY '{password}';
CREATE USER IF NOT EXISTS 'slurm'@'localhost' IDENTIFIED BY '{password}';
GRANT ALL ON slurm_acct.* TO 'slurm'@'127.0.0.1';
GRANT ALL ON slurm_acct.* TO 'slurm'@'localhost';
"""


class NoSlurmError(RuntimeError):
    """SLURM cannot be had on this machine; the message tells why."""


def find_missing() -> list[str]:
    """Programs that are not installed; those of the system may be outside of a user's PATH."""
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    return [x for x in PROGRAMS if shutil.which(x, path=path) is None]


def install() -> None:
    """Install SLURM by apt-get if it is not there.

    Raises:
        NoSlurmError: it cannot be installed.
    """
    if os.geteuid() != 0:
        raise NoSlurmError("it has to be run as root")
    missing = find_missing()
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise NoSlurmError(f"{', '.join(missing)} missing, and there is no apt-get to install them")
    print(f"Installing {' '.join(PACKAGES)}", flush=True)
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *PACKAGES]
    for step in (["apt-get", "update"], command):
        result = subprocess.run(
            step, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if result.returncode != 0:
            raise NoSlurmError(f"{' '.join(step[:2])} failed:\n{result.stderr.strip()}")
    if find_missing():
        raise NoSlurmError(f"the packages do not hold {', '.join(find_missing())}")


def name_nodes() -> None:
    """Let the nodes' names be found, as on a cluster."""
    unname_nodes()
    text = HOSTS.read_text()
    ending = "" if text.endswith("\n") else "\n"
    lines = "".join(f"127.0.0.1 {node} {HOSTS_MARK}\n" for node in NODES)
    HOSTS.write_text(f"{text}{ending}{lines}")


def unname_nodes() -> None:
    """Take the nodes' names out again."""
    lines = HOSTS.read_text().splitlines(keepends=True)
    kept = [x for x in lines if not x.endswith(f"{HOSTS_MARK}\n")]
    if kept != lines:
        # Written in place: containers mount the file, which then cannot be replaced.
        HOSTS.write_text("".join(kept))
