"""Hydra configuration: composes, decides nothing.

Default values are those of the dataclasses and constructors in `isdt_policy`; files here state differences only.
"""
