"""
Writes one self-contained HTML page on one or several runs: tables, curves, and a gallery of pairs.

```bash
python -m vl_reward.report outputs/tiny --output report.html
python -m vl_reward.report outputs/seed_0 outputs/seed_1   # side by side, in outputs/seed_0/report.html
```
"""

import argparse
from pathlib import Path

from .page import write_report


def main():
    """Write the page that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m vl_reward.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="It holds one folder per recipe.")
    parser.add_argument("--output", type=Path, help="By default `report.html` in the first run's folder.")
    parser.add_argument(
        "--max_pairs", type=int, default=2000, help="The gallery holds so many pairs of each kind and run, at most."
    )
    args = parser.parse_args()
    try:
        print(write_report(args.runs, args.output or args.runs[0] / "report.html", args.max_pairs))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
