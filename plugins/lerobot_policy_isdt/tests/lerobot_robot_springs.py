"""A robot for lerobot-rollout that is no more than two joints which follow their commands."""

from dataclasses import dataclass

from lerobot.robots import Robot
from lerobot.robots.config import RobotConfig

JOINTS = ("one.pos", "two.pos")


@RobotConfig.register_subclass("springs")
@dataclass
class SpringsConfig(RobotConfig):
    pass


class Springs(Robot):
    config_class = SpringsConfig
    name = "springs"

    def __init__(self, config):
        super().__init__(config)
        self.at, self.sent, self.connected = dict.fromkeys(JOINTS, 0.0), [], False

    observation_features = property(lambda self: dict.fromkeys(JOINTS, float))
    action_features = property(lambda self: dict.fromkeys(JOINTS, float))
    is_connected = property(lambda self: self.connected)
    is_calibrated = True

    def connect(self, calibrate=True):
        self.connected = True

    def calibrate(self):
        pass

    def configure(self):
        pass

    def get_observation(self):
        return dict(self.at)

    def send_action(self, action):
        self.sent.append([float(action[joint]) for joint in JOINTS])
        self.at = {joint: 0.5 * self.at[joint] + 0.5 * float(action[joint]) for joint in JOINTS}
        return action

    def disconnect(self):
        print("springs were sent", len(self.sent), "commands, the last", self.sent[-1:])
        self.connected = False
