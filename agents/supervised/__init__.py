"""What learns from labels without a policy: activation models, and networks that count."""
