"""Say what is installed, what will run, and what is wrong.

The exit status is 0 only when training of the configs of at least one library would start.
"""

import argparse
import sys

from crossformer_mm.doctor.examination import examine
from crossformer_mm.doctor.findings import report, would_train


def main() -> None:
    """Print the report and exit."""
    parser = argparse.ArgumentParser(prog="python -m crossformer_mm.doctor", description=__doc__)
    parser.parse_args()
    findings = examine()
    print(report(findings))
    sys.exit(0 if would_train(findings) else 1)


if __name__ == "__main__":
    main()
