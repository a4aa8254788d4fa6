"""Versions of models in storage: pushed, pulled, named by aliases, collected. docs/checkpoint-format.md."""
