"""Rotations over any leading axes: matrix, axis-angle, quaternion (x, y, z, w) and 6D.

6D is the first two rows of the matrix, one after the other (Zhou et al., arXiv 1812.07035, in the order of pytorch3d and
Diffusion Policy). It is continuous, so that a network can predict it, and any six numbers that are not degenerate give a
rotation: the rows are made orthonormal, the first keeping its direction.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isdt_policy.shared.errors import InputError

Array = NDArray[np.float64]


def axis_angle_to_matrix(vector: ArrayLike) -> Array:
    """Turn axis times angle, rad (..., 3), into matrices (..., 3, 3)."""
    v = _checked(vector, 3, "axis-angle")
    angle = np.linalg.norm(v, axis=-1)[..., None]
    # sin(x/2)/x, whose limit at 0 is a half.
    scale = 0.5 * np.sinc(angle / (2 * np.pi))
    return quaternion_to_matrix(np.concatenate([scale * v, np.cos(angle / 2)], axis=-1))


def matrix_to_axis_angle(matrix: ArrayLike) -> Array:
    """Turn matrices (..., 3, 3) into axis times angle (..., 3), angle in [0, pi]."""
    q = matrix_to_quaternion(matrix)
    sine = np.linalg.norm(q[..., :3], axis=-1)[..., None]
    angle = 2 * np.arctan2(sine, q[..., 3:])
    # angle / sine, whose limit at 0 is 2.
    scale = np.where(sine > 1e-12, angle / np.maximum(sine, 1e-12), 2.0)
    return np.asarray(scale * q[..., :3])


def quaternion_to_matrix(quaternion: ArrayLike) -> Array:
    """Turn quaternions x, y, z, w (..., 4), of any length but 0, into matrices (..., 3, 3)."""
    q = _checked(quaternion, 4, "quaternion")
    length = np.linalg.norm(q, axis=-1)[..., None]
    if (length < 1e-9).any():
        raise InputError("a quaternion of length 0 is no rotation.")
    x, y, z, w = np.moveaxis(q / length, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def matrix_to_quaternion(matrix: ArrayLike) -> Array:
    """Turn matrices (..., 3, 3) into unit quaternions x, y, z, w (..., 4) with w >= 0."""
    m = np.asarray(matrix, np.float64)
    if m.shape[-2:] != (3, 3):
        raise InputError(f"a rotation matrix has shape (..., 3, 3), got {m.shape}.")
    # 4 q q^T, linear in the matrix; its longest column is free of cancellation.
    t = np.trace(m, axis1=-2, axis2=-1)
    outer = np.empty((*m.shape[:-2], 4, 4))
    for i in range(3):
        for j in range(3):
            outer[..., i, j] = m[..., i, j] + m[..., j, i] if i != j else 1 - t + 2 * m[..., i, i]
    for i, (a, b) in enumerate(((2, 1), (0, 2), (1, 0))):
        outer[..., i, 3] = outer[..., 3, i] = m[..., a, b] - m[..., b, a]
    outer[..., 3, 3] = 1 + t
    longest = np.argmax(np.diagonal(outer, axis1=-2, axis2=-1), axis=-1)
    q = np.take_along_axis(outer, longest[..., None, None], axis=-1)[..., 0]
    q = q / np.linalg.norm(q, axis=-1)[..., None]
    return np.where(q[..., 3:] < 0, -q, q)


def matrix_to_six(matrix: ArrayLike) -> Array:
    """Turn matrices (..., 3, 3) into 6D (..., 6)."""
    m = np.asarray(matrix, np.float64)
    if m.shape[-2:] != (3, 3):
        raise InputError(f"a rotation matrix has shape (..., 3, 3), got {m.shape}.")
    return m[..., :2, :].reshape(*m.shape[:-2], 6)


def six_to_matrix(six: ArrayLike) -> Array:
    """Turn 6D (..., 6) into matrices (..., 3, 3).

    Raises:
        InputError: the two rows are zero or parallel.
    """
    d = _checked(six, 6, "6D rotation")
    first, second = d[..., :3], d[..., 3:]
    length = np.linalg.norm(first, axis=-1)[..., None]
    x = first / np.maximum(length, 1e-9)
    rest = second - (x * second).sum(-1)[..., None] * x
    rest_length = np.linalg.norm(rest, axis=-1)[..., None]
    if (length < 1e-6).any() or (rest_length < 1e-6).any():
        raise InputError("a 6D rotation whose two rows are zero or parallel is no rotation.")
    y = rest / rest_length
    return np.stack([x, y, np.cross(x, y)], axis=-2)


def _checked(value: ArrayLike, size: int, name: str) -> Array:
    array = np.asarray(value, np.float64)
    if array.shape[-1:] != (size,):
        raise InputError(f"{name} has {size} numbers on its last axis, got shape {array.shape}.")
    return array
