"""`python -m eval.report F...`: see eval/report/report.py."""

from eval.report.report import main

if __name__ == "__main__":
    raise SystemExit(main())
