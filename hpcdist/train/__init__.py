"""The built-in training: what runs inside a job, once per rank, as `python -m hpcdist.train`.

Always a process of its own; nothing else of hpcdist imports it.
"""
