"""Where peers come in: sockets and their bounds, keys, and what is refused."""
