"""The `headpond` command. This package brings the producer's commands; others join through entry points."""

from headpond.cli.app import main

__all__ = ["main"]
