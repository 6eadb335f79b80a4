"""An application that uses a framework, as a process of the frameworks' environment: obeys requests, a JSON line each.

It imports nothing of this project. A request is `{"open": program, "vectors": {...}}` or `{"do": name, "with": [...]}`, and
the answer `{"result": ...}` or `{"error": traceback}`. Vectors come with the requests, by text, so that no model is loaded.
"""

import importlib
import json
import sys
import traceback
import warnings

warnings.simplefilter("ignore")
answers, sys.stdout = sys.stdout, sys.stderr


class KnownVectors(dict):
    """The vector of each text that the tests sent, and the dimensions of the model that is meant."""

    dimensions = 0


def main(framework: str, url: str) -> None:
    application = importlib.import_module(framework)
    opened = {}
    known = KnownVectors()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "open" in request:
                known = KnownVectors()
                known.dimensions = request["dimensions"]
                application.close(opened)
                opened = application.open_store(request["open"], url, known)
                result = None
            else:
                known.update(request["vectors"])
                result = getattr(application, request["do"])(opened, known, *request["with"])
            answer = {"result": result}
        except Exception:  # noqa: BLE001 - whatever a framework raises is the answer
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
