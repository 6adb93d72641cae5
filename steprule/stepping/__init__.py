"""What an Optimizer does around the update itself, one subject in each file; :class:`steprule.Optimizer` calls them."""
