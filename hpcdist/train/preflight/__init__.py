"""Checks of nodes and network before a training begins."""
