"""What a person sees in MLflow's own pages, in a real browser, of the runs of the tiny workflow."""

import pytest
from browser import WAIT
from mlflow import MlflowClient
from mlflow_server import serve_mlflow
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from pipelines.core.tracking import tracking_uri

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def server(tiny_workflow, tmp_path_factory):
    uri = tracking_uri(tiny_workflow[0].run)
    with serve_mlflow(tmp_path_factory.mktemp("server"), [f"--backend-store-uri={uri}"]) as url:
        yield url


@pytest.fixture
def pages(server, tiny_workflow):
    """{step: address of its run's page}"""
    client = MlflowClient(tracking_uri(tiny_workflow[0].run))
    experiment = client.get_experiment_by_name(tiny_workflow[0].run.experiment).experiment_id
    runs = client.search_runs([experiment])
    return {run.data.tags["step"]: f"{server}/#/experiments/{experiment}/runs/{run.info.run_id}" for run in runs}


def visit(browser, url):
    """Anew, whatever was shown: pages differ by what follows `#`."""
    browser.get("about:blank")
    browser.get(url)


def follow(browser, label):
    """A link of a description, which opens a window of its own."""
    WebDriverWait(browser, WAIT).until(lambda _: browser.find_elements(By.LINK_TEXT, label))
    windows = set(browser.window_handles)
    browser.find_element(By.LINK_TEXT, label).click()
    WebDriverWait(browser, WAIT).until(lambda _: set(browser.window_handles) > windows)
    browser.close()
    (opened,) = set(browser.window_handles) - windows
    browser.switch_to.window(opened)


def wait_for_text(browser, *parts):
    def shown(_):
        text = browser.find_element(By.TAG_NAME, "body").text
        return all(part in text for part in parts)

    WebDriverWait(browser, 2 * WAIT).until(shown, f"not on the page: {parts}")


def test_a_score_leads_back_to_the_shards(browser, pages, tiny_workflow):
    """From page to page by links, up to the address of what was curated."""
    outcomes = tiny_workflow[2]
    names = {step: f"{step} {outcome.artifact.id[:6]}" for step, outcome in outcomes.items()}
    visit(browser, pages["evaluate"])
    wait_for_text(browser, f"evaluate demo {outcomes['evaluate'].artifact.id[:6]}", "Made from")
    for step, title in (("finetune", "finetune asymflow"), ("basis", "basis"), ("curate", "curate")):
        follow(browser, names[step])
        wait_for_text(browser, f"{title} {outcomes[step].artifact.id[:6]}", outcomes[step].artifact.uri)
        assert browser.current_url.split("?")[0] == pages[step]
    assert tiny_workflow[0].curate["source"] in browser.find_element(By.TAG_NAME, "body").text


def test_curves_and_images_are_there_on_opening(browser, pages):
    browser.set_window_size(1280, 6000)  # what is out of sight is not drawn
    try:
        visit(browser, f"{pages['finetune']}/model-metrics")
        wait_for_text(
            browser, "train", "train/by_sigma", "train/end", "train/speed", "val", "loss", "images_per_second"
        )
        WebDriverWait(browser, WAIT).until(
            lambda _: len(browser.find_elements(By.CSS_SELECTOR, ".js-plotly-plot")) > 10
        )
        visit(browser, f"{pages['evaluate']}/model-metrics")
        wait_for_text(browser, "eval/demo/trained", "eval/demo/lifted", "sliced_wasserstein")
    finally:
        browser.set_window_size(1280, 1000)


def test_a_registered_model_has_its_card(browser, server, tiny_workflow):
    name = tiny_workflow[0].run.experiment
    visit(browser, f"{server}/#/models/{name}")
    wait_for_text(browser, name, "Adapters that AsymFlow trained", "newest")
    visit(browser, f"{server}/#/models/{name}/versions/1")
    wait_for_text(browser, "AsymFlow adapter for", "variance-reduced by patch", "demo/trained/sliced_wasserstein")
