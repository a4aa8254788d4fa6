"""A pull: chunks read, checked and written, and the cache of a host."""
