"""Storage: files that are written completely or not at all, and arrays in a folder."""
