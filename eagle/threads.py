"""OpenMP's threads that wait give their processor up soon: imported before torch, which reads the environment once.

Between two parallel regions libgomp's threads spin, by default for 300,000 pauses, some 20 ms. Beside other work they
spin on processors that the others need, and two processes of two threads each slow each other down many times over.
1,000 pauses, 20 to 60 microseconds, still bridge the gaps inside a forward. Who has set how threads wait keeps that.
"""

import os
import sys

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
PAUSES = "1000"

if "torch" not in sys.modules and not any(name in os.environ for name in WAITING):
    os.environ["GOMP_SPINCOUNT"] = PAUSES
