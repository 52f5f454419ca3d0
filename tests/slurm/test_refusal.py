"""What to do when Slurm refuses a job. Its words are those of Slurm 22.05.8 on the testbed."""

import pytest

from hpcdist.slurm.refusal import find_hint


@pytest.mark.parametrize(
    ("words", "next_word"),
    [
        ("Batch job submission failed: Invalid partition name specified", "sinfo"),
        ("Batch job submission failed: Invalid account or account/partition combination specified", "--account"),
        ("Batch job submission failed: User's group not permitted to use this partition", "--partition"),
        ("Job's account not permitted to use this partition (high denies course including course)", "hpcdist init"),
        ("Job's QOS not permitted to use this partition (high allows normal not course)", "--qos"),
        ("Batch job submission failed: Invalid qos specification", "--qos"),
        (
            "QOSMaxWallDurationPerJobLimit; Batch job submission failed: Job violates accounting/QOS policy "
            "(job submit limit, user's size and/or time limits)",
            "--time",
        ),
        (
            "QOSMaxGRESPerJob; Batch job submission failed: Job violates accounting/QOS policy "
            "(job submit limit, user's size and/or time limits)",
            "ask for less",
        ),
        ("Requested node configuration is not available", "sinfo -o"),
    ],
)
def test_the_hint_is_for_what_slurm_complains_of(words, next_word):
    assert next_word in find_hint(words)


def test_words_that_are_not_known_have_no_hint():
    assert find_hint("Zero Bytes were transmitted or received") == ""
