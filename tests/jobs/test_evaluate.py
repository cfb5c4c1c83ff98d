from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_suite_may_precede_the_configuration(job, config, tmp_path):
    settings = config({"run": {"storage": str(tmp_path / "runs")}, "base": str(ROOT / "models/toy_klein")})
    status, out, err = job("evaluate", "imagenet50k", settings)
    assert status == 2
    assert out == ""
    assert err.startswith("error: pretrained: missing; imagenet50k is for class")
    status, out, err = job("evaluate", settings, "suite=nonsense")
    assert status == 2
    assert err.startswith("error: suite='nonsense': input should be 'demo', 'classes', 'coco10k', ")
    assert job("evaluate", "coco10k")[0] == 2


def test_self_tests_need_no_configuration(job):
    status, out, err = job("evaluate", "dpg", "--self-test")
    assert status == 0
    assert err == ""
    assert out.endswith("all passed\n")
    assert all(line.startswith("ok    dpg  ") for line in out.splitlines()[:-1])
    status, out, _ = job("evaluate", "--self-test")
    assert status == 0
    assert {line.split()[1] for line in out.splitlines()[:-1]} > {"demo", "geneval", "imagenet50k"}
