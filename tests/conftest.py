"""What tests and the processes that they start have in common.

A shell starts what runs in its background with Ctrl-C ignored, and processes started here would inherit that. Tests
with a cache directory of their own find native code where it is compiled already.
"""

import os
import signal

from hsd.native import build

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("EAGLE_NATIVE_CACHE", str(build.cache_directory()))
