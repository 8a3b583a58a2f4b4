"""Demonstrations: the Zarr store they live in, the windows training reads, and other people's formats.

The way data takes: file -> `formats` -> `DemoStore` (store.py) -> `window_indices` -> `WindowDataset.batch` (windows.py).
"""
