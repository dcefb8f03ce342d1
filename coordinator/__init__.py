"""The cluster: what is known about the boards, the best plan, and the way to it."""
