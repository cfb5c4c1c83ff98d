import pytest

from pipelines.core.errors import ConfigError, ItemsFailed, MissingArtifact, StepFailed, StorageError
from pipelines.core.job_process import job_process


@pytest.mark.parametrize(
    ("error", "status"), [(ConfigError, 2), (MissingArtifact, 2), (StepFailed, 1), (ItemsFailed, 1), (StorageError, 1)]
)
def test_each_error_ends_a_job_in_one_line_with_its_status(error, status, capsys):
    with pytest.raises(SystemExit) as ended, job_process():
        raise error("x=1: too small;\n  allowed: 2")
    assert ended.value.code == status
    assert capsys.readouterr().err == "error: x=1: too small; allowed: 2\n"
