"""The optimizer step: schedule, optimizer, precision, kernels, device."""
