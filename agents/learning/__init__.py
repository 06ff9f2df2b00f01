"""How agents learn: losses, returns, one update, a whole run, several processes."""
