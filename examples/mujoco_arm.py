"""An arm in MuJoCo behind the class that robot_loop.py wants: three joints and a gripper, no Gymnasium.

It speaks like a Franka arm under robosuite's OSC_POSE: an action is a displacement of the hand (3 entries, 1 is 5 cm), a rotation
(3 entries, which this arm has no wrist for and leaves out) and the gripper (1 closes, -1 opens).

    python examples/mujoco_arm.py demos.zarr          record five episodes of a scripted demonstrator
"""

import sys

import mujoco
import numpy as np

RATE_HZ = 20
BASE, UPPER, LOWER = np.array([-0.56, 0.0, 0.912]), 0.4, 0.4
START = np.array([-0.1, 0.0, 1.01])
XML = f"""
<mujoco>
  <option timestep="0.005"/>
  <default><joint damping="20" armature="0.1"/><geom mass="1" contype="0" conaffinity="0"/>
    <position kp="900"/></default>
  <worldbody>
    <body pos="{BASE[0]} {BASE[1]} {BASE[2]}" gravcomp="1">
      <joint name="yaw" axis="0 0 1"/><geom type="sphere" size="0.06"/>
      <body gravcomp="1"><joint name="shoulder" axis="0 -1 0"/>
        <geom type="capsule" fromto="0 0 0 {UPPER} 0 0" size="0.04"/>
        <body pos="{UPPER} 0 0" gravcomp="1"><joint name="elbow" axis="0 -1 0"/>
          <geom type="capsule" fromto="0 0 0 {LOWER} 0 0" size="0.03"/>
          <site name="hand" pos="{LOWER} 0 0"/>
          <body pos="{LOWER} 0 0" gravcomp="1"><joint name="finger" type="slide" axis="0 1 0" range="0 0.04"/>
            <geom type="box" size="0.02 0.005 0.02" mass="0.05"/></body>
        </body></body></body>
  </worldbody>
  <actuator><position joint="yaw"/><position joint="shoulder"/><position joint="elbow"/>
    <position joint="finger" kp="200"/></actuator>
</mujoco>
"""


class Arm:
    """The robot. Time passes in `command` alone: one control step a call."""

    action_dim = 7

    def __init__(self) -> None:
        self._model = mujoco.MjModel.from_xml_string(XML)
        self._data = mujoco.MjData(self._model)
        self._hand = self._model.site("hand").id
        self.goal = START.copy()
        self._data.qpos[:3] = self._data.ctrl[:3] = joints(START)
        self._data.qpos[3] = self._data.ctrl[3] = 0.04
        mujoco.mj_forward(self._model, self._data)

    @property
    def hand(self) -> np.ndarray:
        """Position of the hand (3,), metres."""
        return self._data.site_xpos[self._hand].copy()

    def observe(self) -> dict[str, np.ndarray]:
        finger = self._data.qpos[3]
        return {"robot0_eef_pos": self.hand, "robot0_gripper_qpos": np.array([finger, -finger])}

    def command(self, action: np.ndarray) -> None:
        self.goal = self.goal + 0.05 * np.clip(action[:3], -1, 1)
        self._data.ctrl[:3] = joints(self.goal)
        self._data.ctrl[3] = 0.0 if action[6] > 0 else 0.04
        mujoco.mj_step(self._model, self._data, round(1 / RATE_HZ / self._model.opt.timestep))

    def hold(self) -> None:
        self.goal = self.hand


def joints(hand: np.ndarray) -> np.ndarray:
    """Angles of yaw, shoulder and elbow that bring the hand to a place, or as near as the arm reaches."""
    x, y, z = hand - BASE
    out = np.hypot(x, y)
    far = np.clip(np.hypot(out, z), 0.05, 0.999 * (UPPER + LOWER))
    elbow = -np.arccos(np.clip((far**2 - UPPER**2 - LOWER**2) / (2 * UPPER * LOWER), -1, 1))
    shoulder = np.arctan2(z, out) - np.arctan2(LOWER * np.sin(elbow), UPPER + LOWER * np.cos(elbow))
    return np.array([np.arctan2(y, x), shoulder, elbow])


def demonstrate(path: str, episodes: int = 5) -> None:
    """Record a demonstrator who brings the hand down to a place, closes the gripper and lifts it."""
    from isdt_policy.datasets.recorder import DemoWriter, Recorder

    rng = np.random.default_rng(0)
    with DemoWriter(path) as writer:
        recorder = Recorder(writer)
        for _ in range(episodes):
            arm, place = Arm(), np.array([-0.05, 0.0, 0.85]) + rng.uniform(-0.03, 0.03, 3)
            for step in range(60):
                target, grip = (place, -1.0) if step < 30 else (START, 1.0)
                action = np.zeros(7)
                action[:3] = np.clip((target - arm.hand) / 0.1 + 0.05 * rng.normal(size=3), -1, 1)
                action[6] = grip
                recorder.step(arm.observe(), action.astype(np.float32))
                arm.command(action)
            recorder.end()


if __name__ == "__main__":
    demonstrate(sys.argv[1])
