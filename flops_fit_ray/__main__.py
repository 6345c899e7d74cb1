"""`python -m flops_fit_ray`: the same commands as `flops-fit-ray`."""

from flops_fit_ray.cli import enter

if __name__ == "__main__":
    enter()
