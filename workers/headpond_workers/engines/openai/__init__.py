"""Proxies: servers of the OpenAI protocol, each with secrets and limits of its own."""
