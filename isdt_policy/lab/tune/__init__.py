"""`isdt tune`: search settings of `isdt train`, judged by rollouts."""
