"""What tests of one's own optimizers call."""

from .check_rule import check_rule

__all__ = ["check_rule"]
