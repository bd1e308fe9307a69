"""Token-level credit for TRL trainers, with RLMEC as the flagship method."""

import importlib
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .grm.generative_reward_model import GenerativeRewardModel
    from .grm.grm_config import GRMConfig
    from .grm.grm_trainer import GRMTrainer
    from .trainers.label_reward_config import LabelRewardConfig
    from .trainers.label_reward_trainer import LabelRewardTrainer
    from .trainers.online_rlmec_config import OnlineRLMECConfig
    from .trainers.online_rlmec_trainer import OnlineRLMECTrainer
    from .trainers.rlmec_config import RLMECConfig
    from .trainers.rlmec_trainer import RLMECTrainer
    from .trainers.token_credit_callback import TokenCreditCallback

__version__ = "0.1.0"

__all__ = [
    "GRMConfig",
    "GRMTrainer",
    "GenerativeRewardModel",
    "LabelRewardConfig",
    "LabelRewardTrainer",
    "OnlineRLMECConfig",
    "OnlineRLMECTrainer",
    "RLMECConfig",
    "RLMECTrainer",
    "TokenCreditCallback",
]

# Where each public name lives. It is imported on first use, because torch and TRL take seconds to load and much of the
# package (data, tasks, reports) needs neither.
_MODULES = {
    "GRMConfig": ".grm.grm_config",
    "GRMTrainer": ".grm.grm_trainer",
    "GenerativeRewardModel": ".grm.generative_reward_model",
    "LabelRewardConfig": ".trainers.label_reward_config",
    "LabelRewardTrainer": ".trainers.label_reward_trainer",
    "OnlineRLMECConfig": ".trainers.online_rlmec_config",
    "OnlineRLMECTrainer": ".trainers.online_rlmec_trainer",
    "RLMECConfig": ".trainers.rlmec_config",
    "RLMECTrainer": ".trainers.rlmec_trainer",
    "TokenCreditCallback": ".trainers.token_credit_callback",
}


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name], __name__), name)
    globals()[name] = value  # cached for the next access
    return value


def __dir__():
    return sorted({*globals(), *__all__})
