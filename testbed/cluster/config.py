"""The text of every configuration file, as a function of the testbed."""

from __future__ import annotations

from cluster.layout import STUDENT_ACCOUNT, Testbed

SLURM_CONF = """\
ClusterName=testbed
SlurmctldHost={host}({host_address})
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthType=auth/munge
# A requeued job may not start before its credential has expired: 120 s by default, 5 s is the least allowed.
AuthInfo=socket={munge},cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# Nodes declare more CPUs and memory than the machine has.
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log

# A dead node is noticed in seconds, and a revived one is used again by itself.
SlurmdTimeout=10
MessageTimeout=5
TCPTimeout=2
ReturnToService=2
KillWait=5
UnkillableStepTimeout=300

SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2,bf_continue
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MaxArraySize=10001
MaxJobCount=20000
MinJobAge=600

AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=16819
AccountingStoragePass={munge}
AccountingStorageTRES=gres/gpu
# Who has no account is refused, and so is what a QOS does not allow.
AccountingStorageEnforce=associations,limits,qos
AccountingStoreFlags=job_comment,job_env,job_script
JobAcctGatherType=jobacct_gather/linux
# Once a second: by default a job shorter than 30 s has no memory figure.
JobAcctGatherFrequency=task=1

GresTypes=gpu
{nodes}
PartitionName=DEFAULT Nodes=ALL DefaultTime=30 MaxTime=UNLIMITED
PartitionName=main Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high PriorityTier=10 PreemptMode=OFF GraceTime=0 DenyAccounts={closed_to}
"""

SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={munge}
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort=16819
SlurmUser=root
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
# localhost means the Unix socket that MYSQL_UNIX_PORT names: the database listens on no port.
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
"""


def render_slurm_conf(testbed: Testbed) -> str:
    """slurm.conf (slurm.conf(5)); every daemon and client reads this one file."""
    nodes = "\n".join(
        f"NodeName={node} NodeAddr={testbed.address(node)} CPUs=4 RealMemory=8000 Gres=gpu:fake:2"
        f" Feature={f'type-{number},' if number < 4 else ''}type-4"
        for number, node in enumerate(testbed.nodes, 1)
    )
    return SLURM_CONF.format(
        host=testbed.host_name,
        host_address=testbed.host_address,
        munge=testbed.munge_socket,
        folder=testbed.folder,
        nodes=nodes,
        closed_to=STUDENT_ACCOUNT,
    )


def render_slurmdbd_conf(testbed: Testbed) -> str:
    """slurmdbd.conf (slurmdbd.conf(5)), which must have mode 0600."""
    return SLURMDBD_CONF.format(host=testbed.host_name, munge=testbed.munge_socket, folder=testbed.folder)


def render_gres_conf(testbed: Testbed) -> str:
    """gres.conf (gres.conf(5)): GPUs that schedule, on device files that lead nowhere."""
    return f"Name=gpu Type=fake File={testbed.folder}/dev/gpu[0-1]\n"


def render_hosts(testbed: Testbed) -> str:
    """/etc/hosts as the nodes see it."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost", f"{testbed.host_address} {testbed.host_name}"]
    lines += [f"{testbed.address(node)} {node}" for node in testbed.nodes]
    return "\n".join(lines) + "\n"
