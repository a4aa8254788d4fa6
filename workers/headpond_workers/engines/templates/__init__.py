"""Chat templates: rendered in a sandbox, tried in a child process before a model serves."""
