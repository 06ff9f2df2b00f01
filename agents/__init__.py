"""Agents: what learns. ``protocol`` says what an agent is; ``actor_critic`` is the paper's."""
