"""Write what is made from the settings classes: docs/configuration.md and docs/schemas/STEP.json.

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

`python jobs/STEP.py CONFIG.yaml [dotted.key=value ...]`: a job reads one file, changes it by what is on the command
line, and refuses what is wrong before anything starts. `--help` prints the settings below, `--dry-run` all of them as
they are taken. Shipped files are in `jobs/configs/STEP`; [Getting started](getting_started.md#command-line) says how
values are written.

Two keys belong to the file, not to the settings:

- `step` names the step that the file configures. A job refuses a file of another one.
- `extends` names another file to start from, by its path from this one's folder. Mappings are merged key by key;
  everything else, lists too, is replaced.

Editors that use the YAML language server complete and check keys by `docs/schemas/STEP.json`; `.vscode/settings.json`
connects them with the files.

## All steps

Where a run happens, and where it is logged. None of it is part of an artifact's identity.

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
