"""The optimizer as a dictionary, matched by name when it is loaded, and the form of the file."""
