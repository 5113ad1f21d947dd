"""`python -m eval.reports F...`: see eval/reports/report.py."""

from eval.reports.report import main

if __name__ == "__main__":
    raise SystemExit(main())
