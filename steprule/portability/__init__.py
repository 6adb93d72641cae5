"""What not every version of torch has, nor every system; nothing else stands below this room."""
