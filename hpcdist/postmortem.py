"""The post-mortem: from the evidence about one attempt to its cause. Pure.

Each rule looks for one cause and says nothing where it is not sure; the first that speaks is right. What Slurm itself
decided comes first, then what the rank that failed first says of itself, then what is left.
"""

from collections.abc import Callable

from hpcdist import rank_rules, slurm_rules
from hpcdist.evidence import Evidence
from hpcdist.records.job import Cause

Rule = Callable[[Evidence], Cause | None]

RULES: tuple[Rule, ...] = (
    slurm_rules.refused,
    slurm_rules.lost,
    slurm_rules.completed,
    slurm_rules.waiting,
    slurm_rules.running,
    slurm_rules.out_of_memory,
    rank_rules.failed_long_before,
    slurm_rules.node_failure,
    slurm_rules.preempted,
    slurm_rules.time_limit,
    slurm_rules.cancelled,
    slurm_rules.requeued,
    *rank_rules.OF_ONE_RANK,
    rank_rules.ended_before_the_ranks,
)


def judge(evidence: Evidence) -> Cause:
    """Why an attempt ended as it did, or does not run; of kind `unknown` with all that is known rather than a guess."""
    for rule in RULES:
        if cause := rule(evidence):
            return cause
    return rank_rules.unknown(evidence)
