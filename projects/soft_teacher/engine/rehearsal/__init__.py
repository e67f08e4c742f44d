"""Rehearsal of the configs: what a long training would do, found out before it is begun."""
