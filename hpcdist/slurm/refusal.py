"""What to do when Slurm refuses a job, by what it says."""

# Looked for in this order, in lower case.
HINTS = (
    ("walldurationperjob", "sacctmgr show qos format=name,maxwall has the longest; --time"),
    ("accounting/qos policy", "sacctmgr show qos has the limits; ask for less, or --qos NAME"),
    ("account/partition", "sacctmgr show associations user=$USER lists your accounts; --account, or --partition"),
    ("account not permitted", "hpcdist init finds a partition that is open to you; --partition NAME"),
    ("qos not permitted", "sacctmgr show associations user=$USER lists your QOS; --qos NAME, or --partition NAME"),
    ("partition", "sinfo lists the partitions; --partition NAME"),
    ("account", "sacctmgr show associations user=$USER lists your accounts; --account NAME"),
    ("qos", "sacctmgr show associations user=$USER lists your QOS; --qos NAME"),
    ("time limit", "scontrol show partition has the longest; --time"),
    ("node configuration", "sinfo -o '%P %D %c %m %G' shows what the nodes have"),
    ("gres", "sinfo -o '%P %G' shows the GPUs; gpu_flag and gpu_type in hpcdist.toml say how to ask for them"),
)
# What the queue says of a job that Slurm took all the same (src/slurmctld/partition_mgr.c of Slurm 22.05).
CLOSED_DOOR = "not permitted to use this partition"


def find_hint(words: str) -> str:
    """Return the next command to type; empty where Slurm's words are not known."""
    return next((hint for sign, hint in HINTS if sign in words.lower()), "")
