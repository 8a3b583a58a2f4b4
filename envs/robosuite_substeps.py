"""A control step of robosuite 1.4.1 in half of its time, with the same bits.

A control step is 25 physics steps. In each robosuite has MuJoCo compute the dynamics three times, before the controller, in it
and in `mj_step`, although the state changes at the end alone; takes the Jacobian of a hand eight times; and looks up names and
limits that do not change. Here each is done once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

SimObject: TypeAlias = Any  # an object of robosuite or MuJoCo, which are not typed


@dataclass
class Arm:
    """A controller with what robosuite looks up in every physics step.

    Attributes:
        controller: robosuite's OperationalSpaceController.
        gripper: its gripper, whose dof last entries of the arm's action are for it.
        span: the arm's entries of the action.
        site: id of the controlled site.
        jacobian, mass: buffers, (2, 3, nv) and (nv, nv).
        grip_index, grip_centre, grip_half_width: actuators of the gripper and their range.
    """

    controller: SimObject
    gripper: SimObject
    span: slice
    site: int
    jacobian: NDArray[np.float64]
    mass: NDArray[np.float64]
    grip_index: list[int]
    grip_centre: NDArray[np.float64]
    grip_half_width: NDArray[np.float64]


class Substeps:
    """Carries out control steps of one environment, between two of its resets.

    Args:
        env: a robosuite 1.4.1 environment whose arms have OSC controllers.
    """

    def __init__(self, env: SimObject) -> None:
        import mujoco

        self.mujoco = mujoco
        self.env, self.sim = env, env.sim
        self.model, self.data = env.sim.model._model, env.sim.data._data
        self.count = int(env.control_timestep / env.model_timestep)
        self.robots = []
        start = 0
        for robot in env.robots:
            arms = []
            for controller, gripper in _pairs(robot):
                stop = start + controller.control_dim + gripper.dof
                arms.append(self._arm(controller, gripper, slice(start, stop)))
                start = stop
            self.robots.append((robot, arms, robot.torque_limits))

    def fits(self) -> bool:
        """Whether the environment still has the simulation and the controllers that it had."""
        now = [pair[0] for robot in self.env.robots for pair in _pairs(robot)]
        mine = [arm.controller for _, arms, _ in self.robots for arm in arms]
        return self.env.sim is self.sim and len(now) == len(mine) and all(a is b for a, b in zip(now, mine))

    def step(self, action: NDArray[np.float64]) -> None:
        """Advance by one control step, as `env.step` does, without observables."""
        env = self.env
        env.timestep += 1
        arms = [arm for _, arms, _ in self.robots for arm in arms]
        for arm in arms:
            arm.controller.update = partial(self._update, arm)
        try:
            for number in range(self.count):
                if number == 0:
                    self.mujoco.mj_forward(self.model, self.data)  # with the forces that the next line records
                    env._pre_action(action, True)
                else:
                    self.mujoco.mj_step1(
                        self.model, self.data
                    )  # positions and velocities: all that the controller reads
                    self._control(action)
                self.mujoco.mj_step2(self.model, self.data)
        finally:
            for arm in arms:
                del arm.controller.update
        env.cur_time += env.control_timestep
        env._post_action(action)

    def _arm(self, controller: SimObject, gripper: SimObject, span: slice) -> Arm:
        model, nv = self.sim.model, self.model.nv
        index = [model.actuator_name2id(name) for name in gripper.actuators]
        limits = model.actuator_ctrlrange[index]
        return Arm(
            controller, gripper, span, model.site_name2id(controller.eef_name), np.zeros((2, 3, nv)), np.zeros((nv, nv)),
            index, 0.5 * (limits[:, 1] + limits[:, 0]), 0.5 * (limits[:, 1] - limits[:, 0]),
        )  # fmt: skip

    def _update(self, arm: Arm, force: bool = False) -> None:
        """`Controller.update`, with one Jacobian for all that follows from it."""
        c, data = arm.controller, self.data
        if not (c.new_update or force):
            return
        c.ee_pos = np.array(data.site_xpos[arm.site])
        c.ee_ori_mat = np.array(data.site_xmat[arm.site].reshape([3, 3]))
        linear, angular = arm.jacobian
        self.mujoco.mj_jacSite(self.model, data, linear, angular, arm.site)
        c.ee_pos_vel, c.ee_ori_vel = np.dot(linear, data.qvel), np.dot(angular, data.qvel)
        c.joint_pos, c.joint_vel = np.array(data.qpos[c.qpos_index]), np.array(data.qvel[c.qvel_index])
        c.J_pos, c.J_ori = np.array(linear[:, c.qvel_index]), np.array(angular[:, c.qvel_index])
        c.J_full = np.array(np.vstack([c.J_pos, c.J_ori]))
        self.mujoco.mj_fullM(self.model, arm.mass, data.qM)
        c.mass_matrix = arm.mass[c.qvel_index, :][:, c.qvel_index]
        c.new_update = False

    def _control(self, action: NDArray[np.float64]) -> None:
        """`Robot.control` between two policy steps."""
        ctrl = self.data.ctrl
        for robot, arms, (low, high) in self.robots:
            torques = np.concatenate([arm.controller.run_controller() for arm in arms])
            robot.torques = np.clip(torques, low, high)
            for arm in arms:
                fingers = arm.gripper.format_action(action[arm.span][arm.controller.control_dim :])
                ctrl[arm.grip_index] = arm.grip_centre + arm.grip_half_width * fingers
            ctrl[robot._ref_joint_actuator_indexes] = robot.torques


def forward_leaves_no_trace(model: SimObject) -> bool:
    """Whether `mj_forward` may be left out of a physics step: not where its solver starts from what the last call found."""
    import mujoco

    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return not data.qacc_warmstart.any()


def _pairs(robot: SimObject) -> list[tuple[SimObject, SimObject]]:
    """(controller, gripper) of every arm, in the order of their entries in an action."""
    if isinstance(robot.controller, dict):
        return [(robot.controller[arm], robot.gripper[arm]) for arm in robot.arms]
    return [(robot.controller, robot.gripper)]
