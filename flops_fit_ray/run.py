"""`python -m flops_fit_ray.run`: the same command as `flops-fit-ray run`.

It defines nothing: under `-m` this module is `__main__`, and whatever were defined here could not travel to a worker.
"""

import sys

from flops_fit_ray.cli import enter_run

if __name__ == "__main__":
    enter_run(sys.argv[1:])
