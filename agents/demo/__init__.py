"""The page to play with: one player, and the server that shows it."""
