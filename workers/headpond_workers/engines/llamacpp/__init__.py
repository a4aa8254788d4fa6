"""llama.cpp, by xllamacpp: generation, embeddings, adapters, stored keys and values."""
