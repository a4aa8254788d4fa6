"""What no version leads to is collected, and what is stored is read again for damage."""
