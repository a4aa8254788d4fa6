"""Running a replay bundle on this machine, in a process that may die of it."""
