"""What training takes from diffusers as it is: the running mean of the weights, the learning rate's course."""

from __future__ import annotations

from diffusers.optimization import get_scheduler as get_scheduler
from diffusers.training_utils import EMAModel as EMAModel
