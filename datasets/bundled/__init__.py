"""Demonstrations that come with the package; a path "bundled:NAME" names one."""
