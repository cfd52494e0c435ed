"""Access to the hardware: devices and precision, ``torch.compile``, and one training in several processes.

Code that depends on the recipe or the task does not belong here.
"""
