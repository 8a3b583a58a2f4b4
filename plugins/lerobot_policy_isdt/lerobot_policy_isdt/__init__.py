"""isdt-policy's policies in LeRobot. Importing this registers the policy type "isdt"; LeRobot does so by itself."""

from lerobot_policy_isdt.configuration_isdt import IsdtConfig
from lerobot_policy_isdt.modeling_isdt import IsdtPolicy

__all__ = ["IsdtConfig", "IsdtPolicy"]
