"""`python -m lab graph record NODE`: appends the node to `recorded`."""

import sys
from pathlib import Path

assert sys.argv[1:3] == ["graph", "record"], sys.argv
with Path("recorded").open("a") as file:
    file.write(sys.argv[3] + "\n")
