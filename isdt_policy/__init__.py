"""isdt-policy: one-step diffusion policies for robots, trained from scratch.

Nothing heavy is imported here, so that `import isdt_policy.envs` does not load torch and `isdt --help` answers at once.
"""

from pathlib import Path

__version__ = "0.1.0"

# In a clone, `datasets`, `envs`, `eval` and `configs` stand beside this folder; installed, they stand in it. A Python
# started in the clone finds this folder first, and has to find them too.
_clone = Path(__file__).parent.parent
if not (_clone / "isdt_policy" / "envs").exists() and (_clone / "envs" / "registry.py").exists():
    __path__.append(str(_clone))
