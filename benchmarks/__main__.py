"""`python -m benchmarks VERB`: results on stdout as JSON, progress on stderr. Exit codes: 1 no result, 2 the command is wrong."""

from __future__ import annotations

import argparse
import json
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def main(words: list[str] | None = None) -> int:
    from . import planner, table
    from .speed import command

    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    command.add_arguments(verbs.add_parser("speed", help="qllava against its peers, step by step"))
    planner.add_arguments(verbs.add_parser("planner", help="measured peak memory beside what the planner foretells"))
    verbs.add_parser("table", help="write the Markdown of all results anew")
    args = parser.parse_args(words)
    if args.verb == "table":
        print(json.dumps(table.rewrite()))
        return 0
    try:
        result = (command if args.verb == "speed" else planner).measure(args, words)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    if args.verb == "speed" and args.save:
        table.save(result, args.save)
        print(table.markdown(result, args.save), file=sys.stderr)
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
