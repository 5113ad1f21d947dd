"""`python -m eval.reports`, the command of earlier versions: see `eval.report`."""

from eval.report.report import main

if __name__ == "__main__":
    raise SystemExit(main())
