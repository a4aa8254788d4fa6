"""Files of models: their headers, vocabularies and digests, read without an engine."""
