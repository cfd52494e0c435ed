"""The hardware: devices and precision, ``torch.compile``, and one training in several processes.

Nothing here knows what is computed.
"""
