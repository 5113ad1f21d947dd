"""`python -m eval.report`: a short name of `python -m eval.reports`."""

from eval.reports.report import main

if __name__ == "__main__":
    raise SystemExit(main())
