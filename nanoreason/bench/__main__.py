"""Where the bench starts as a command; see nanoreason/bench/speed.py."""

from nanoreason.bench.speed import main
from nanoreason.machine import run_script

if __name__ == "__main__":
    run_script(main)
