"""What makes this project's own tables: studies, searches, diagnoses, benchmarks. Not needed to train, evaluate or deploy."""
