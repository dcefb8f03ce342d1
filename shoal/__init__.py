"""shoal: one Transformer on several small boards, planned from what they measure."""

__version__ = "0.1.0"
