"""The policy network: encoders, memories and action heads."""
