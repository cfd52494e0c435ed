"""Access to the hardware: devices and precision, ``torch.compile``, and one training in several processes.

Code that depends on what is computed does not belong here.
"""
