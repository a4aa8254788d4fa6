"""exllamav2 on a GPU: loading, memory, jobs, pages, structured output, stored keys and values."""
