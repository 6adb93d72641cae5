"""What an Optimizer does around the update itself: options, hooks and counting, and which Program serves what."""
