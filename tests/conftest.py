"""A shell starts what runs in its background with Ctrl-C ignored, and processes that tests start would inherit that."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
