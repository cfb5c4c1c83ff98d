"""What every worker of a local Ray imports first, so that it says only what is meant for people.

A module of its own: it is imported even by workers that need nothing else.
"""

import logging
import warnings

# Without a dashboard, Ray Train's clean-up actor would warn twice a second that it cannot ask it anything.
logging.getLogger("ray.train.v2._internal.execution.controller.placement_group_cleaner").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="torchvision.models")  # lpips still uses the old names of its settings
