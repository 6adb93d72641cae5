"""Words of messages, which every room says in the same way."""
