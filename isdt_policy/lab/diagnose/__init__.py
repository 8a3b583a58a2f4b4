"""`isdt diagnose`: what a trained flow map got right and wrong, without an environment."""
