import importlib
import logging
import warnings

from pipelines.core import warning_filters


def test_warnings_of_torchvisions_models_are_silenced_and_others_are_not():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        importlib.reload(warning_filters)
        warnings.warn_explicit("deprecated", UserWarning, "utils.py", 1, module="torchvision.models._utils")
        warnings.warn_explicit("mine", UserWarning, "step.py", 1, module="pipelines.core.step")
    assert [str(warning.message) for warning in shown] == ["mine"]


def test_ray_trains_cleaner_reports_errors_alone():
    name = "ray.train.v2._internal.execution.controller.placement_group_cleaner"
    assert logging.getLogger(name).level == logging.ERROR
