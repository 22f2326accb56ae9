"""What goes over the wire and to disk as bytes: messages, their schema and codec, addresses, tensor files.

Invariant: data only; nothing here knows a socket, a clock or torch.
"""
