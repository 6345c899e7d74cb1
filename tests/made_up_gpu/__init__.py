"""A CUDA device that does not exist: its tensors lie in memory and are computed on the CPU, so their numbers are true.

What a GPU would punish is an error or a record here: a tensor left on the CPU, a hidden wait for the device, a read
while a graph is captured.
"""
