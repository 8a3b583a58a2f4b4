import sys
from pathlib import Path

# Spawned workers import the toys by name; multiprocessing hands them this path.
sys.path.insert(0, str(Path(__file__).parent))
