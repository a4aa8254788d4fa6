"""The Lua scripts of the queue, one atomic operation a file; headpond.scripts loads them."""
