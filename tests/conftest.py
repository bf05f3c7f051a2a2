"""What all tests share: no run leaves records behind, and a test machine's cores are not all taken."""

from __future__ import annotations

import os

os.environ.setdefault("LAB_TRACKING", "off")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DVC_NO_ANALYTICS", "true")
os.environ.setdefault("MPLBACKEND", "agg")
