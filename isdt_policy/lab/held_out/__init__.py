"""What can be said of a policy without rollouts: its actions beside those of recordings that it has not seen."""
