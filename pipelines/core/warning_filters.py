"""Silence warnings that are irrelevant to users, in every worker of a local Ray, which imports this module first.

It is a separate module so that workers that need nothing else import little.
"""

import logging
import warnings

# Without a dashboard, Ray Train's clean-up actor would warn twice a second that it cannot reach it.
logging.getLogger("ray.train.v2._internal.execution.controller.placement_group_cleaner").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="torchvision.models")  # lpips uses deprecated arguments
