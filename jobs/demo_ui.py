"""A page in the browser to try a pixel model on; the toy's, unless told otherwise. Ctrl-C ends it."""

import argparse
import threading
from contextlib import suppress
from os.path import expanduser

from pipelines.core.job_process import job_process
from pipelines.sample.config import Safety

TOY = {"base": "models/toy_klein", "adapter": "models/toy_asymflow"}


@job_process()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", help=f"latent model's folder, or a merged pipeline's (default: {TOY['base']})")
    parser.add_argument("--adapter", help=f"folder or OWNER/NAME (default: {TOY['adapter']}, or none for a --base)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    parser.add_argument("--host", default="127.0.0.1", help="(default: 127.0.0.1, only this machine)")
    parser.add_argument("--port", type=int, default=7860, help="(default: 7860; 0: any free one)")
    parser.add_argument("--allowed-host", action="append", default=[], metavar="NAME", help="that it is called by, too")
    parser.add_argument("--safety-classifier", default="", metavar="FOLDER", help="of a transformers image classifier")
    args = parser.parse_args()
    base, adapter = args.base or TOY["base"], args.adapter or ("" if args.base else TOY["adapter"])
    safety = Safety(classifier=args.safety_classifier)
    from pipelines.sample.demo_page import open_page

    with suppress(KeyboardInterrupt):
        names = args.allowed_host
        with open_page(expanduser(base), expanduser(adapter), args.device, safety, args.host, args.port, names) as url:
            print(f"{url} (Ctrl-C ends it)", flush=True)
            threading.Event().wait()


if __name__ == "__main__":
    main()
