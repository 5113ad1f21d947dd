"""`python -m eagle.nn.native`: compile now what would be compiled at first use, and say what there is."""

from eagle.nn import native


def main() -> int:
    """Always 0: everything runs without native code too."""
    reason = native.unavailable()
    if reason:
        print(f"no native code: {reason}. Products of few rows go through torch.")
    else:
        name = next(name for name, value in native.INSTRUCTIONS.items() if value == native.load().instructions)
        print(f"native code for few rows: {name}, {native.build()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
