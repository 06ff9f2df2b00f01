"""The demo page: a player that runs agents, and the server that shows what they do."""
