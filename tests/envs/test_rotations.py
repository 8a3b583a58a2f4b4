"""Rotations: agreement with scipy, inverses, the hard angles 0 and pi, refusals."""

import numpy as np
import pytest
import scipy.spatial.transform as transform

from isdt_policy.envs import rotations
from isdt_policy.shared.errors import InputError


@pytest.fixture(scope="module")
def cases():
    rng = np.random.default_rng(0)
    axes = rng.normal(size=(400, 3))
    axes /= np.linalg.norm(axes, axis=1)[:, None]
    axes[:6] = np.concatenate([np.eye(3), -np.eye(3)])
    angles = rng.uniform(0, np.pi, 400)
    angles[:60] = np.repeat([0.0, 1e-9, 1e-4, np.pi / 2, np.pi - 1e-7, np.pi], 10)
    return transform.Rotation.from_rotvec(axes * angles[:, None])


def test_every_form_agrees_with_scipy(cases):
    matrix = cases.as_matrix()
    assert np.allclose(rotations.axis_angle_to_matrix(cases.as_rotvec()), matrix, atol=1e-14)
    assert np.allclose(rotations.quaternion_to_matrix(-3 * cases.as_quat()), matrix, atol=1e-14)
    quaternion = rotations.matrix_to_quaternion(matrix)
    assert (quaternion[:, 3] >= 0).all()
    assert np.allclose(np.abs((quaternion * cases.as_quat()).sum(1)), 1, atol=1e-14)
    vector = rotations.matrix_to_axis_angle(matrix)
    back = transform.Rotation.from_rotvec(vector).as_matrix()
    assert np.allclose(back, matrix, atol=1e-9)
    below = cases.magnitude() < 3.1  # at pi the axis has two signs
    assert np.allclose(vector[below], cases.as_rotvec()[below], atol=1e-9)


def test_six_numbers_are_the_first_two_rows_and_come_back(cases):
    matrix = cases.as_matrix()
    six = rotations.matrix_to_six(matrix)
    assert np.array_equal(six[:, :3], matrix[:, 0])
    assert np.allclose(rotations.six_to_matrix(six), matrix, atol=1e-14)
    bent = six * 1.7 + np.random.default_rng(1).normal(scale=0.05, size=six.shape)
    again = rotations.six_to_matrix(bent)
    assert np.allclose(again @ np.swapaxes(again, -1, -2), np.eye(3), atol=1e-12)
    assert np.allclose(np.linalg.det(again), 1)


def test_leading_axes_are_kept(cases):
    matrix = cases.as_matrix()[:24].reshape(2, 3, 4, 3, 3)
    assert rotations.matrix_to_six(matrix).shape == (2, 3, 4, 6)
    assert rotations.matrix_to_axis_angle(matrix[0, 0, 0]).shape == (3,)
    assert rotations.six_to_matrix(rotations.matrix_to_six(matrix)).shape == matrix.shape


def test_what_is_no_rotation_is_refused():
    with pytest.raises(InputError, match="parallel"):
        rotations.six_to_matrix([1, 0, 0, 2, 0, 0])
    with pytest.raises(InputError, match="length 0"):
        rotations.quaternion_to_matrix([0, 0, 0, 0])
    with pytest.raises(InputError, match="3 numbers"):
        rotations.axis_angle_to_matrix(np.zeros((2, 4)))
    with pytest.raises(InputError, match=r"\(\.\.\., 3, 3\)"):
        rotations.matrix_to_six(np.zeros((3, 2)))
