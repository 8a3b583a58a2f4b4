"""isdt-policy: one-step diffusion policies for robots, trained from scratch.

Nothing heavy is imported here, so that `import isdt_policy.envs` does not load torch and `isdt --help` answers at once.
"""

__version__ = "0.1.0"
