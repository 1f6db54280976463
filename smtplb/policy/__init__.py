"""Decisions, pure: facts in, a decision out. Clocks and random numbers are arguments; nothing here does I/O."""
