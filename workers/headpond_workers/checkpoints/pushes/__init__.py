"""A push: files cut and hashed, what storage lacks sent, a number taken."""
