"""The worker side of headpond: engines, the worker process, persistence and supervision."""
