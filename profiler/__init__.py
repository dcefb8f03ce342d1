"""Numbers about a board and its links, with their spread and their source."""
