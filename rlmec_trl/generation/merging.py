"""Adapters merged into their base models."""

import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, PeftConfig
from transformers import PreTrainedModel

from ..data.adapters import adapter_base
from ..data.errors import ConfigError, ModelError
