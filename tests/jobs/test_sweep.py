def test_a_bad_sweep_is_one_line(job, config, tmp_path):
    tree = {"run": {"storage": str(tmp_path / "runs")}, "metric": "trained/fid", "evaluate": {"suite": "demo"}}
    status, out, err = job("sweep", config({**tree, "grid": {"sampling.steps": [4]}}))
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: evaluate.metric='trained/fid': must be one of latent/sliced_wasserstein")
