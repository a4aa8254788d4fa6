"""headpond: durable LLM inference behind one queue a model. This package is the producer's side."""
