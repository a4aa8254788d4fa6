"""How a worker changes the version that it serves, and what brings queues in line with an alias. docs/versions.md."""
