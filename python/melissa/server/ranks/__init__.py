"""A server of several ranks: rank 0 decides, the others obey; see `message` for what they say."""
