"""What is known of devices and of a model's blocks: profiles, times, memory."""
