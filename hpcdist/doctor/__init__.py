"""Checks of machine, cluster and runs; `hpcdist init`; drills."""
