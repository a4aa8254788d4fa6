"""Constraints of answers: JSON schemas and GBNF, checked before an engine sees them."""
