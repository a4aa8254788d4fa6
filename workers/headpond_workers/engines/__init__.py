"""Engines: one file an engine, none knows another."""
