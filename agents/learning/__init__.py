"""How agents learn: losses, advantages, one update, a whole run, and runs of several processes."""
