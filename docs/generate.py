"""Write the documents generated from the settings classes: docs/configuration.md and docs/schemas/STEP.json.

    python docs/generate.py [FOLDER]

FOLDER is by default this file's own.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel

from pipelines.core.config import RunSettings
from pipelines.core.settings_reference import Setting, json_schema, list_settings
from pipelines.experiments.config import SETTINGS

HEAD = """# Configuration

<!-- Written by docs/generate.py (`make configuration`). Change the settings classes instead. -->

`python jobs/STEP.py CONFIG.yaml [dotted.key=value ...]`: a job reads one file and applies the overrides of the command
line. An unknown or invalid setting is an error before anything starts. `--help` lists the settings below, and
`--dry-run` prints the resulting values. Shipped files are in `jobs/configs/STEP`. [Getting
started](getting_started.md#command-line) describes the syntax of values.

Two keys describe the file itself:

- `step` is the configured step. A job refuses the file of another step.
- `extends` is the path of a base file, relative to this file's folder. Mappings are merged key by key; all other
  values, including lists, are replaced.

Editors with the YAML language server complete and check keys with `docs/schemas/STEP.json`; `.vscode/settings.json`
maps the schemas to the files.

## All steps

Where a run executes and where it is logged. These settings are not part of an artifact's ID.

"""
COLUMNS = "| setting | allowed | default | |\n|---|---|---|---|\n"


def configuration() -> str:
    """Return the text of docs/configuration.md."""
    sections = [HEAD + table(list_settings(RunSettings, "run."))]
    for step, model in SETTINGS.items():
        own = (setting for setting in list_settings(model) if not setting.key.startswith("run."))
        sections.append(f"## {step}\n\n{about(model)}`python jobs/{step}.py`\n\n{table(own)}")
    return "\n".join(sections)


def about(model: type[BaseModel]) -> str:
    """Return a class's own docstring as a paragraph."""
    text = " ".join((model.__dict__.get("__doc__") or "").split())
    return f"{text}\n\n" if text else ""


def table(settings: Iterable[Setting]) -> str:
    """Return a table of Markdown."""
    rows = ((f"`{s.key}`", s.allowed, f"`{s.default}`" if s.default else "", s.about) for s in settings)
    return COLUMNS + "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)


def generate(folder: Path) -> None:
    """Write all files."""
    (folder / "configuration.md").write_text(configuration(), "utf-8")
    schemas = folder / "schemas"
    schemas.mkdir(exist_ok=True)
    for step, model in SETTINGS.items():
        text = json.dumps(json_schema(model, step), indent=1, ensure_ascii=False)
        (schemas / f"{step}.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
