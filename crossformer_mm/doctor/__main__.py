"""Say what is installed, what will run, and what is wrong.

The exit status is 0 only when training would start: with a config, of that config; without one,
of the configs of at least one library.
"""

import argparse
import sys

from crossformer_mm.doctor.examination import examine
from crossformer_mm.doctor.findings import report, would_train


def main() -> None:
    """Print the report and exit."""
    parser = argparse.ArgumentParser(prog="python -m crossformer_mm.doctor", description=__doc__)
    parser.add_argument("config", nargs="?", help="a config to train with")
    parser.add_argument("--data-root", metavar="DIR", help="where the config's data is")
    args = parser.parse_args()
    if args.data_root is not None and args.config is None:
        parser.error(f"--data-root {args.data_root} moves the data of a config: name the config")
    findings = examine(args.config, args.data_root)
    print(report(findings))
    sys.exit(0 if would_train(findings) else 1)


if __name__ == "__main__":
    main()
