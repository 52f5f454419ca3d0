"""Slurm's durations and amounts of memory read without hpcdist, so that its figures are compared with another's."""

import re


def seconds(text):
    """`[[DD-]HH:]MM:SS[.mmm]`."""
    days, _, rest = text.rpartition("-")
    total = 0.0
    for part in rest.split(":"):
        total = total * 60 + float(part)
    return total + 86400 * int(days or 0)


def memory_bytes(tres):
    """The memory in a list of resources; None when it is not in it."""
    found = re.search(r"\bmem=([0-9.]+)([KMG]?)", tres)
    return found and float(found[1]) * 1024 ** " KMG".index(found[2] or " ")
