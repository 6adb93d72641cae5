"""steprule."""
