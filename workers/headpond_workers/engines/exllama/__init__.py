"""What the engines of exllamav2 and exllamav3 have in common."""
